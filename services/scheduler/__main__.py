"""The scheduler's process: everything is wired here, top to bottom, and nowhere else."""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from chassis import client, config, identity, postgres, server, telemetry
from chassis.outbox import OutboxRelay
from chassis.tls import Tls
from modelspec.catalog import load_catalog
from scheduler import background, events, watching
from scheduler.background import Reaper, Ticker, every
from scheduler.config import Config
from scheduler.peers import Peers
from scheduler.service import RunService
from scheduler.store import Store
from scheduler.submission import Submitter
from scheduler.wakeups import Wakeups
from scheduler.watching import EventService, FaultService, NodeService
from scheduler.work import WorkService
from tunesmith.api.event.v1 import event_service_pb2, event_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_service_pb2, fault_service_pb2_grpc
from tunesmith.api.run.v1 import run_service_pb2, run_service_pb2_grpc
from tunesmith.api.work.v1 import work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

SERVICE: Final = "scheduler"
# A waiting node asks anew every 20 s; one that was silent for three such waits is gone.
SILENT: Final = timedelta(seconds=60)
# The relay and the listener hold a connection each.
POOL_SIZE: Final = 12


async def main() -> None:
    """Serve until told to stop."""
    telemetry.start(SERVICE)
    settings = config.load(Config, os.environ)
    log.info("configuration", **config.describe(settings))
    tls = Tls.load(
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        authority=settings.tls_authority,
    )
    plans = load_catalog(settings.catalog_dir).plans
    limits = {name: plan.concurrent_run_count for name, plan in plans.items()}
    lease = timedelta(seconds=settings.lease_seconds)
    token = identity.service_token(settings.signing_key, SERVICE)

    pool = await postgres.open_pool(settings.database_url, schema=SERVICE, max_size=POOL_SIZE)
    await postgres.migrate(pool, schema=SERVICE, package=SERVICE)
    store, wakeups = Store(pool), Wakeups()
    channels = {
        name: client.connect(address, token=token, tls=tls)
        for name, address in (
            ("validator", settings.validator_address),
            ("billing", settings.billing_address),
            ("hub", settings.hub_address),
        )
    }
    peers = Peers(**channels)
    submitter = Submitter(store, peers, stale=timedelta(seconds=settings.submission_seconds))
    reaper, ticker = Reaper(store, lease=lease), Ticker(store)
    relay = OutboxRelay(pool, settings.nats_url, events.STREAM, (f"{events.SUBJECT_PREFIX}.>",))

    def register(grpc_server: Any) -> Sequence[str]:
        work = WorkService(
            store,
            peers,
            wakeups,
            lease=lease,
            heartbeat_millis=settings.heartbeat_millis,
            limits=limits,
        )
        run_service_pb2_grpc.add_RunServiceServicer_to_server(
            RunService(store, submitter), grpc_server
        )
        event_service_pb2_grpc.add_EventServiceServicer_to_server(
            EventService(store, wakeups), grpc_server
        )
        fault_service_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(), grpc_server)
        work_service_pb2_grpc.add_WorkServiceServicer_to_server(work, grpc_server)
        work_service_pb2_grpc.add_NodeServiceServicer_to_server(
            NodeService(store, silent=SILENT), grpc_server
        )
        return [
            run_service_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
            event_service_pb2.DESCRIPTOR.services_by_name["EventService"].full_name,
            fault_service_pb2.DESCRIPTOR.services_by_name["FaultService"].full_name,
            work_service_pb2.DESCRIPTOR.services_by_name["WorkService"].full_name,
            work_service_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
        ]

    async def listen(stop: asyncio.Event) -> None:
        await every(background.LISTEN_SECONDS, partial(watching.listen, store, wakeups, stop), stop)
        wakeups.close()

    try:
        await server.run_server(
            service=SERVICE,
            listen=settings.listen,
            tls=tls,
            signing_key=settings.signing_key,
            register=register,
            background=[
                relay.run,
                listen,
                partial(every, background.REAP_SECONDS, reaper.run_once),
                partial(every, background.TICK_SECONDS, ticker.run_once),
                partial(every, background.HEAL_SECONDS, submitter.heal),
            ],
        )
    finally:
        for channel in channels.values():
            await channel.close()
        await pool.close()


if __name__ == "__main__":
    server.main(main)
