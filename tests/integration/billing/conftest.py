"""Billing as it runs, on a real Postgres; the scheduler's event log is a list."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import grpc.aio
import pytest

from billing.events import RunEvents
from billing.service import BillingService
from billing.store import Store
from chassis import postgres
from chassis.client import connect
from chassis.identity import Role, service_token
from lexicon.ids import new_id
from tests.support.desk import SIGNING_KEY, calling, serving
from tests.support.postgres import PostgresServer
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc


class EventLog(event_service_pb2_grpc.EventServiceServicer):
    """The scheduler's event log: the events of runs in the order in which they were stored."""

    def __init__(self) -> None:
        self.events: list[event_pb2.Event] = []

    async def WatchRun(
        self, request: event_service_pb2.WatchRunRequest, _context: object
    ) -> AsyncIterator[event_service_pb2.WatchRunResponse]:
        for event in self.events:
            if event.run == request.name and event.sequence > request.after_sequence:
                yield event_service_pb2.WatchRunResponse(event=event)

    async def ListEvents(
        self, request: event_service_pb2.ListEventsRequest, _context: object
    ) -> event_service_pb2.ListEventsResponse:
        start = int(request.page_token or 0)
        of_run = [each for each in self.events if request.run in {"-", each.run}]
        page = of_run[start : start + (request.page_size or 100)]
        return event_service_pb2.ListEventsResponse(
            events=page, next_page_token=str(start + len(page))
        )


@dataclass(kw_only=True)
class Desk:
    """Billing with everything that a test needs to talk to it."""

    store: Store
    pool: postgres.Pool
    events: RunEvents
    log: EventLog
    address: str
    scheduler_address: str
    user: "billing_service_pb2_grpc.BillingServiceAsyncStub"
    operator: "billing_service_pb2_grpc.BillingServiceAsyncStub"
    service: "billing_service_pb2_grpc.BillingServiceAsyncStub"
    stack: AsyncExitStack = field(repr=False)

    async def handle(self, events: Sequence[event_pb2.Event]) -> None:
        """Delivers events one by one."""
        for event in events:
            await self.events.handle(event)

    async def balances(self) -> dict[str, int]:
        """All accounts of the ledger."""
        rows = await self.pool.fetch("SELECT account, balance_micros FROM accounts")
        return {row["account"]: row["balance_micros"] for row in rows}

    async def check_books(self) -> None:
        """Holds the laws of the ledger: zero in all, balances equal to their postings."""
        balances = await self.balances()
        assert sum(balances.values()) == 0
        rows = await self.pool.fetch(
            "SELECT account, sum(amount_micros)::bigint AS total FROM postings GROUP BY account"
        )
        assert {row["account"]: row["total"] for row in rows} == {
            account: balance
            for account, balance in balances.items()
            if account in {row["account"] for row in rows}
        }
        floors = [value for account, value in balances.items() if account != "platform/grants"]
        assert all(value >= 0 for value in floors)


def entry_id(now: datetime) -> str:
    return new_id("tx", now=now, random_bytes=secrets.token_bytes)


@pytest.fixture(scope="module")
def room_database(postgres_server: PostgresServer) -> str:
    """One database for a file of tests: making one takes longer than most tests."""
    return asyncio.run(postgres_server.create_database())


@pytest.fixture
async def database_url(room_database: str) -> AsyncIterator[str]:
    """The file's database, emptied after each test."""
    yield room_database
    connection = await asyncpg.connect(room_database)
    await connection.execute("DROP SCHEMA IF EXISTS billing CASCADE")
    await connection.close()


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    """Billing on a fresh database."""
    async with AsyncExitStack() as stack:
        pool = await postgres.open_pool(database_url, schema="billing")
        stack.push_async_callback(pool.close)
        await postgres.migrate(pool, schema="billing", package="billing")
        store = Store(pool, new_id=entry_id, default_plan="free")
        log = EventLog()

        def register_log(server: grpc.aio.Server) -> Sequence[str]:
            event_service_pb2_grpc.add_EventServiceServicer_to_server(log, server)
            name: str = event_service_pb2.DESCRIPTOR.services_by_name["EventService"].full_name
            return [name]

        scheduler_address = await stack.enter_async_context(serving(register_log))
        scheduler = connect(scheduler_address, token=service_token(SIGNING_KEY, "billing"))
        stack.push_async_callback(scheduler.close)
        service = BillingService(store, plans=("free", "local", "pro"), scheduler=scheduler)

        def register(server: grpc.aio.Server) -> Sequence[str]:
            billing_service_pb2_grpc.add_BillingServiceServicer_to_server(service, server)
            name: str = billing_service_pb2.DESCRIPTOR.services_by_name["BillingService"].full_name
            return [name]

        address = await stack.enter_async_context(serving(register))
        stubs = {
            role: billing_service_pb2_grpc.BillingServiceStub(
                await stack.enter_async_context(calling(address, role))
            )
            for role in (Role.PROJECT, Role.OPERATOR, Role.SERVICE)
        }
        yield Desk(
            store=store,
            pool=pool,
            events=RunEvents(store),
            log=log,
            address=address,
            scheduler_address=scheduler_address,
            user=stubs[Role.PROJECT],
            operator=stubs[Role.OPERATOR],
            service=stubs[Role.SERVICE],
            stack=stack,
        )
