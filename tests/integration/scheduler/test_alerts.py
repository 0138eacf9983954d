"""Operators are told of what users cannot mend: by NATS, by a webhook, and nobody else is."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest

from chassis import postgres
from chassis.identity import Role
from scheduler.alerts import STREAM, Alerts, webhook_url
from scheduler.domain.alerts import MAX_TRIES, AlertChannel
from scheduler.store import Store
from tests.support.nats import NatsServer
from tests.support.scheduler_calls import NODE, fail, leased, registered, submitted
from tests.support.scheduling import (
    Neighbours,
    SchedulerProcess,
    Stubs,
    calling,
    scheduler_process,
)
from tunesmith.api.event.v1 import alert_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.work.v1 import work_pb2

pytestmark = pytest.mark.integration

WAIT_SECONDS = 20.0
SECRET = "hf_plantedPLANTEDplantedPLANTED012345"


@dataclass(slots=True)
class Hook:
    """A webhook of the test's own.

    Attributes:
        statuses: answers of the next calls; 200 when there are no more.
    """

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found.keys.append(self.headers["Idempotency-Key"])
            self.send_response(found.statuses.pop(0) if found.statuses else 200)
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook?key=planted-key"
    yield found
    server.shutdown()
    server.server_close()


@asynccontextmanager
async def telling(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, folder: Path, hook: Hook
) -> AsyncIterator[SchedulerProcess]:
    """A scheduler that knows the webhook."""
    process = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=folder,
        TUNESMITH_ALERT_WEBHOOK_URL=hook.url,
    )
    await process.start()
    try:
        yield process
    finally:
        process.stop()


async def failed_run(user: Stubs, trainer: Stubs, code: str, message: str) -> str:
    run = await submitted(user)
    await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
    lease = await leased(trainer)
    assert lease.run == run.name
    await fail(trainer, lease, fault_pb2.Fault(code=code, message=message))
    return run.name


async def until_told(hook: Hook, count: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while len(hook.bodies) < count:
            await asyncio.sleep(0.05)


async def heard_by(url: str, *, count: int) -> list[alert_pb2.OperatorAlert]:
    """Alerts that a user of nats-server can read."""
    client = await nats.connect(url, error_cb=_silent, allow_reconnect=False)
    try:
        subscription = await client.jetstream(timeout=1.0).subscribe(
            "tunesmith.operator.v1.>", stream=STREAM, ordered_consumer=True
        )
        messages = [await subscription.next_msg(timeout=5) for _ in range(count)]
    finally:
        await client.close()
    return [alert_pb2.OperatorAlert.FromString(message.data) for message in messages]


async def test_an_internal_fault_is_told_by_nats_and_webhook_without_secrets(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, tmp_path: Path, hook: Hook
) -> None:
    """004-07: the team is notified automatically; users with a subscription hear nothing of it."""
    hook.statuses = [503]
    async with (
        telling(database_url, nats_server, fakes, tmp_path, hook) as scheduler,
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        code = "INTERNAL_UNEXPECTED"
        run = await failed_run(user, trainer, code, f"It broke with {SECRET}.")
        # The first try was refused; it is made again.
        await until_told(hook, 2)
        log = scheduler.log.read_text()
    (told,) = await heard_by(nats_server.url("operator"), count=1)
    assert (told.run, told.fault.code, told.fault.node) == (run, code, NODE)
    assert told.reason == alert_pb2.ALERT_REASON_INTERNAL_FAULT
    assert set(hook.keys) == {told.alert_id}
    body = hook.bodies[-1]
    assert body["alert"]["run"] == run
    assert run in body["text"]
    assert code in body["text"]
    for text in (str(told), json.dumps(hook.bodies), log):
        assert SECRET not in text
    assert "operator alert" in log
    assert "planted-key" not in log
    with pytest.raises((nats.errors.Error, TimeoutError)):
        await heard_by(nats_server.url("events"), count=1)


async def test_the_third_out_of_memory_of_one_configuration_is_told_and_the_first_two_are_not(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, tmp_path: Path, hook: Hook
) -> None:
    """000-12: the platform is at fault then, and its operators know."""
    async with (
        telling(database_url, nats_server, fakes, tmp_path, hook) as scheduler,
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        names = [
            await failed_run(user, trainer, "RUNTIME_GPU_OOM", "CUDA out of memory.")
            for _ in range(3)
        ]
        await until_told(hook, 1)
    assert [body["alert"]["run"] for body in hook.bodies] == names[2:]
    assert hook.bodies[0]["alert"]["reason"] == "ALERT_REASON_OOM_REPEATED"
    assert hook.bodies[0]["alert"]["earlier_oom_count"] == 2


async def test_what_cannot_be_delivered_is_given_up_after_a_bounded_number_of_tries(
    database_url: str,
) -> None:
    """004-07: a webhook that is gone is not called for ever, and holds up nothing."""
    pool = await postgres.open_pool(database_url, schema="scheduler", max_size=2)
    try:
        await postgres.migrate(pool, schema="scheduler", package="scheduler")
        store = Store(pool)
        alerts = Alerts(store, nats_url="nats://127.0.0.1:9", webhook_url="http://127.0.0.1:9/hook")
        async with store.transaction() as transaction:
            await transaction.note_alert("a-1", [AlertChannel.WEBHOOK], code="X", payload=b"")
        for tries in range(1, MAX_TRIES + 1):
            assert await alerts.run_once() == 1
            assert await alerts.run_once() == 0, "it rests between two tries"
            row = await pool.fetchrow("SELECT * FROM alerts")
            assert row is not None
            assert row["try_count"] == tries
            assert row["deliver_time"] is None
            await pool.execute("UPDATE alerts SET due_time = now() WHERE due_time IS NOT NULL")
        assert await pool.fetchval("SELECT due_time FROM alerts") is None
        assert await alerts.run_once() == 0
    finally:
        await pool.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/x",
        "http://10.0.0.1/x",
        "ftp://127.0.0.1/x",
        "https://",
        "hooks",
        "http://127.0.0.1.example.org/",
    ],
)
def test_alerts_leave_this_machine_under_tls_only(url: str) -> None:
    """004-07"""
    with pytest.raises(ValueError, match=r"^$"):
        webhook_url(url)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.org/x", "http://127.0.0.1:8080/x", "http://[::1]:80/x"]
)
def test_tls_or_this_machine_is_an_address_for_alerts(url: str) -> None:
    """004-07"""
    assert webhook_url(url) == url


async def _silent(_error: Exception) -> None:
    """Refusals are what the test looks for; the client would print them."""
