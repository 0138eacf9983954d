"""The scheduler's process: everything is wired here, top to bottom, and nowhere else."""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from chassis import client, config, identity, postgres, server, telemetry
from chassis.outbox import OutboxRelay
from chassis.sealing import Sealer
from chassis.tls import Tls
from modelspec.catalog import load_catalog
from scheduler import background, events, watching
from scheduler.alerts import Alerts
from scheduler.background import Reaper, Sweeper, Ticker, every
from scheduler.config import Config
from scheduler.domain import exports
from scheduler.domain.tasks import TaskKind
from scheduler.export_service import ExportService
from scheduler.export_tasks import stored_export
from scheduler.kinds import Kinds
from scheduler.peers import Peers
from scheduler.run_tasks import run_export, training
from scheduler.service import RunService
from scheduler.store import Store
from scheduler.submission import Submitter
from scheduler.wakeups import Wakeups
from scheduler.watching import EventService, FaultService, NodeService
from scheduler.work import WorkService
from tunesmith.api.event.v1 import event_service_pb2, event_service_pb2_grpc
from tunesmith.api.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_service_pb2, fault_service_pb2_grpc
from tunesmith.api.run.v1 import run_service_pb2, run_service_pb2_grpc
from tunesmith.api.work.v1 import work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

SERVICE: Final = "scheduler"
# A waiting node asks again every 20 s; one that is silent for three such waits is lost.
SILENT: Final = timedelta(seconds=60)
# The relay and the listener hold a connection each.
POOL_SIZE: Final = 12


async def main() -> None:
    """Serve until a stop is requested."""
    telemetry.start(SERVICE)
    settings = config.load(Config, os.environ)
    log.info("configuration", **config.describe(settings))
    tls = Tls.load(
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        authority=settings.tls_authority,
    )
    plans = load_catalog(settings.catalog_dir).plans
    lease = timedelta(seconds=settings.lease_seconds)
    token = identity.service_token(settings.signing_key, SERVICE)
    pool = await postgres.open_pool(settings.database_url, schema=SERVICE, max_size=POOL_SIZE)
    await postgres.migrate(pool, schema=SERVICE, package=SERVICE)
    store, wakeups = Store(pool), Wakeups()
    async with (
        client.connect(settings.validator_address, token=token, tls=tls) as validator,
        client.connect(settings.billing_address, token=token, tls=tls) as billing,
        client.connect(settings.hub_address, token=token, tls=tls) as hub,
    ):
        peers = Peers(validator=validator, billing=billing, hub=hub)
        sealer = Sealer(settings.signing_key, purpose="hub-tokens")
        submitter = Submitter(
            store, peers, sealer, stale=timedelta(seconds=settings.submission_seconds)
        )
        alerts = Alerts(store, nats_url=settings.nats_url, webhook_url=settings.alert_webhook_url)
        # A new kind of task is one row more. Runs come before exports of stored adapters:
        # somebody waits for their end, and they hold money.
        limits = {name: plan.concurrent_run_count for name, plan in plans.items()}
        kinds: Kinds = {
            TaskKind.TRAIN: training(peers, limits=limits),
            TaskKind.EXPORT: run_export(peers),
            exports.KIND: stored_export(peers),
        }
        work = WorkService(
            store,
            peers,
            wakeups,
            sealer,
            alerts,
            kinds,
            lease=lease,
            heartbeat_millis=settings.heartbeat_millis,
        )
        relay = OutboxRelay(pool, settings.nats_url, events.STREAM, (f"{events.SUBJECT_PREFIX}.>",))
        await server.run_server(
            service=SERVICE,
            listen=settings.listen,
            tls=tls,
            signing_key=settings.signing_key,
            register=partial(
                _register,
                store,
                wakeups,
                RunService(store, submitter),
                ExportService(store, peers, sealer),
                work,
            ),
            background=[
                relay.run,
                partial(_listen, store, wakeups),
                partial(every, background.REAP_SECONDS, Reaper(store, kinds, lease=lease).run_once),
                partial(every, background.TICK_SECONDS, Ticker(store).run_once),
                partial(every, background.HEAL_SECONDS, submitter.heal),
                partial(every, background.SWEEP_SECONDS, Sweeper(store, peers).run_once),
                partial(every, background.ALERT_SECONDS, alerts.run_once),
            ],
        )
    await pool.close()


def _register(
    store: Store,
    wakeups: Wakeups,
    runs: RunService,
    exports: ExportService,
    work: WorkService,
    grpc_server: Any,
) -> Sequence[str]:
    """Adds the six services and returns their names."""
    run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, grpc_server)
    export_service_pb2_grpc.add_ExportServiceServicer_to_server(exports, grpc_server)
    event_service_pb2_grpc.add_EventServiceServicer_to_server(
        EventService(store, wakeups), grpc_server
    )
    fault_service_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(), grpc_server)
    work_service_pb2_grpc.add_WorkServiceServicer_to_server(work, grpc_server)
    work_service_pb2_grpc.add_NodeServiceServicer_to_server(
        NodeService(store, silent=SILENT), grpc_server
    )
    contracts = (
        event_service_pb2,
        export_service_pb2,
        fault_service_pb2,
        run_service_pb2,
        work_service_pb2,
    )
    return [
        service.full_name
        for contract in contracts
        for service in contract.DESCRIPTOR.services_by_name.values()
    ]


async def _listen(store: Store, wakeups: Wakeups, stop: asyncio.Event) -> None:
    """Wakes who waits, until the process stops; then everybody for the last time."""
    await every(background.LISTEN_SECONDS, partial(watching.listen, store, wakeups, stop), stop)
    wakeups.close()


if __name__ == "__main__":
    server.main(main)
