"""The process of billing: `python -m billing`."""

import os
import secrets
from collections.abc import Sequence
from datetime import datetime

import grpc.aio

from billing.config import Config
from billing.events import DURABLE, STREAM, SUBJECTS, RunEvents
from billing.service import BillingService
from billing.store import Store
from chassis import config, postgres, telemetry
from chassis.client import connect
from chassis.consumer import EventConsumer, scheduler_pages
from chassis.identity import service_token
from chassis.server import main, run_server
from chassis.tls import Tls
from lexicon.faults import Fault, FaultCode
from lexicon.ids import new_id
from modelspec.catalog import load_catalog
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc


async def run() -> None:
    """Serves billing until a stop is requested."""
    telemetry.start("billing")
    settings = config.load(Config, os.environ)
    telemetry.logger(__name__).info("starting", **config.describe(settings))
    tls = Tls.load(certificate=settings.tls_cert, key=settings.tls_key, authority=settings.tls_ca)
    plans = load_catalog(settings.catalog_dir).plans
    if settings.default_plan not in plans:
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"TUNESMITH_DEFAULT_PLAN: the catalog has no plan {settings.default_plan}.",
        )
    pool = await postgres.open_pool(settings.database_url, schema="billing")
    await postgres.migrate(pool, schema="billing", package="billing")
    store = Store(pool, new_id=_entry_id, default_plan=settings.default_plan)
    token = service_token(settings.signing_key, "billing")
    scheduler = connect(settings.scheduler_addr, token=token, tls=tls)
    service = BillingService(store, plans=plans, scheduler=scheduler)
    events = RunEvents(store)
    consumer = EventConsumer(
        nats_url=settings.nats_url,
        stream=STREAM,
        durable=DURABLE,
        subjects=SUBJECTS,
        handle=events.handle,
        catch_up=scheduler_pages(scheduler),
        load_cursor=events.load_cursor,
        save_cursor=events.save_cursor,
    )

    def register(server: grpc.aio.Server) -> Sequence[str]:
        billing_service_pb2_grpc.add_BillingServiceServicer_to_server(service, server)
        return [billing_service_pb2.DESCRIPTOR.services_by_name["BillingService"].full_name]

    try:
        await run_server(
            service="billing",
            listen=settings.listen,
            tls=tls,
            signing_key=settings.signing_key,
            register=register,
            background=[consumer.run],
        )
    finally:
        await scheduler.close()
        await pool.close()


def _entry_id(now: datetime) -> str:
    return new_id("tx", now=now, random_bytes=secrets.token_bytes)


if __name__ == "__main__":
    main(run)
