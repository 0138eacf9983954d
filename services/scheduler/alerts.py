"""Operators' alerts: recorded with the failure, delivered to NATS and a webhook independently.

What is sent is a fault as users see it, so that secrets are out of it already. The address of the
webhook is a secret of its own and is never logged.
"""

from typing import Final
from urllib.parse import urlsplit

import httpx
from google.protobuf.json_format import MessageToDict
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from chassis import jetstream, telemetry
from chassis.tls import is_loopback
from scheduler import wire
from scheduler.domain.alerts import AlertChannel, Delivery, reason_for
from scheduler.domain.tasks import Lease, RunFault
from scheduler.kinds import About
from scheduler.store import Store, Transaction
from tunesmith.api.event.v1 import alert_pb2

log = telemetry.logger(__name__)

STREAM: Final = "TUNESMITH_OPERATOR"
SUBJECT_PREFIX: Final = "tunesmith.operator.v1"
KEPT_SECONDS: Final = 90 * 24 * 3600.0
WEBHOOK_SECONDS: Final = 5.0
# Bounds one round, so that a stop is not waited for long.
MAX_DELIVERIES: Final = 10


class Alerts:
    """Records alerts and delivers them."""

    def __init__(self, store: Store, *, nats_url: str, webhook_url: str | None) -> None:
        """Make it.

        Args:
            webhook_url: takes a POST of JSON; None without one.
        """
        self._store = store
        self._nats_url = nats_url
        self._webhook_url = webhook_url
        self._channels = [AlertChannel.NATS, *([AlertChannel.WEBHOOK] if webhook_url else [])]

    async def record(
        self,
        transaction: Transaction,
        owner: str,
        about: About,
        lease: Lease,
        fault: RunFault,
        *,
        same_oom_count: int,
    ) -> None:
        """Writes an alert in the transaction of a failure that operators must know of.

        An export of a stored adapter names the run that made the adapter.
        """
        reason = reason_for(fault, same_oom_count=same_oom_count)
        if reason is None:
            return
        alert = alert_pb2.OperatorAlert(
            alert_id=f"{owner.rpartition('/')[2]}-{lease.fencing_epoch}",
            reason=f"ALERT_REASON_{reason}",
            run=about.run,
            attempt=lease.attempt,
            fault=wire.fault_to_proto(fault),
            fingerprint=about.fingerprint,
            earlier_oom_count=same_oom_count,
            traceparent=about.traceparent,
        )
        alert.create_time.FromDatetime(await transaction.now())
        await transaction.note_alert(
            alert.alert_id,
            self._channels,
            code=fault.code,
            payload=alert.SerializeToString(),
        )
        log.error(
            "operator alert",
            run=about.run,
            code=fault.code,
            node=fault.node,
            message=fault.message,
        )

    async def run_once(self) -> int:
        """Returns how many deliveries were tried."""
        for count in range(MAX_DELIVERIES):
            async with self._store.transaction() as transaction:
                delivery = await transaction.claim_alert(self._channels)
            if delivery is None:
                return count
            problem = await self._deliver(delivery)
            gives_up = bool(problem) and delivery.is_last_try
            async with self._store.transaction() as transaction:
                await transaction.settle_alert(delivery, delivered=not problem, gives_up=gives_up)
            if problem:
                write = log.error if gives_up else log.warning
                write(
                    "operator alert not delivered",
                    alert=delivery.alert_id,
                    channel=delivery.channel,
                    tries=delivery.try_count,
                    given_up=gives_up,
                    reason=problem,
                )
        return MAX_DELIVERIES

    async def _deliver(self, delivery: Delivery) -> str:
        """Tries once; returns what went wrong, empty when nothing did."""
        try:
            if delivery.channel is AlertChannel.NATS:
                await self._publish(delivery)
                return ""
            return await self._post(delivery)
        except _TROUBLE as error:
            # The text of some errors names the address.
            return type(error).__name__

    async def _publish(self, delivery: Delivery) -> None:
        client = await jetstream.connect(
            self._nats_url, name="scheduler-alerts", on_closed=lambda: None
        )
        try:
            stream = jetstream.context(client)
            if await jetstream.stream_info(stream, STREAM) is None:
                await stream.add_stream(_STREAM_CONFIG)
            await stream.publish(
                f"{SUBJECT_PREFIX}.alert.{delivery.code}",
                delivery.payload,
                stream=STREAM,
                headers={"Nats-Msg-Id": delivery.alert_id},
            )
        finally:
            await jetstream.close(client)

    async def _post(self, delivery: Delivery) -> str:
        assert self._webhook_url is not None
        alert = wire.parse(alert_pb2.OperatorAlert, delivery.payload)
        document = {
            # What chat services show of a webhook.
            "text": f"Tunesmith: {alert.fault.code} in {alert.run} (attempt {alert.attempt}, "
            f"{alert.fault.node}): {alert.fault.message}",
            "alert": MessageToDict(alert, preserving_proto_field_name=True),
        }
        async with httpx.AsyncClient(timeout=WEBHOOK_SECONDS, follow_redirects=False) as client:
            answer = await client.post(
                self._webhook_url,
                json=document,
                headers={"Idempotency-Key": delivery.alert_id},
            )
        return "" if answer.is_success else f"HTTP {answer.status_code}"


def webhook_url(text: str) -> str:
    """An address that alerts may go to: TLS, or this machine.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(text)
    port = parts.port or 443
    if not parts.hostname or parts.fragment:
        raise ValueError
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(f"{host}:{port}")):
        return text
    raise ValueError


_TROUBLE: Final[tuple[type[Exception], ...]] = (*jetstream.TROUBLE, httpx.HTTPError)
_STREAM_CONFIG: Final = StreamConfig(
    name=STREAM,
    subjects=[f"{SUBJECT_PREFIX}.>"],
    retention=RetentionPolicy.LIMITS,
    storage=StorageType.FILE,
    max_age=KEPT_SECONDS,
)
