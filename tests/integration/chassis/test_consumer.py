"""The event consumer against a real nats-server, with the outbox itself as the log."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from chassis import outbox
from chassis.consumer import EventConsumer, EventPage
from chassis.outbox import OutboxRelay
from chassis.postgres import Pool
from lexicon.faults import Fault, FaultCode
from tests.support.events import SUBJECTS, append, outbox_pool, row, until
from tests.support.nats import STREAM, NatsServer
from tunesmith.api.event.v1 import event_pb2

pytestmark = pytest.mark.integration


@dataclass
class Room:
    """A consumer's room: what it did, with an inbox and a cursor that survive the consumer."""

    pool: Pool
    done: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0
    cursor: str = ""
    broken_run: str = ""
    log_away: bool = False

    async def handle(self, event: event_pb2.Event) -> None:
        self.calls += 1
        key = (event.run.rpartition("/")[2], event.sequence)
        if key[0] == self.broken_run:
            raise Fault(FaultCode.BILLING_HOLD_NOT_FOUND)
        if key not in self.done:
            self.done.append(key)

    async def pages(self, cursor: str) -> AsyncIterator[EventPage]:
        if self.log_away:
            raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE)
        while True:
            async with self.pool.acquire() as connection:
                payloads, cursor = await outbox.read_after(connection, cursor, limit=7)
            if not payloads:
                return
            events = [event_pb2.Event.FromString(payload) for payload in payloads]
            yield EventPage(events=events, cursor=cursor)

    async def load(self) -> str:
        return self.cursor

    async def save(self, cursor: str) -> None:
        self.cursor = cursor

    def has(self, *, runs: int, count: int) -> bool:
        return len(self.done) == runs * count

    def assert_in_order(self) -> None:
        by_run: dict[str, list[int]] = {}
        for run, sequence in self.done:
            by_run.setdefault(run, []).append(sequence)
        for sequences in by_run.values():
            assert sequences == list(range(1, len(sequences) + 1))


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await outbox_pool(database_url)
    yield opened
    opened.terminate()


@contextlib.asynccontextmanager
async def consuming(room: Room, server: NatsServer) -> AsyncIterator[None]:
    stop = asyncio.Event()
    consumer = EventConsumer(
        nats_url=server.url("billing"),
        stream=STREAM,
        durable="billing",
        subjects=SUBJECTS,
        handle=room.handle,
        catch_up=room.pages,
        load_cursor=room.load,
        save_cursor=room.save,
    )
    running = asyncio.create_task(consumer.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await running


@contextlib.asynccontextmanager
async def relaying(pool: Pool, server: NatsServer) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.create_task(
        OutboxRelay(pool, server.url("scheduler"), STREAM, SUBJECTS).run(stop)
    )
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await running


async def fill(pool: Pool, *, runs: int, first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        await append(pool, *(row(f"run-{number}", sequence) for number in range(runs)))


async def test_events_are_handled_once_and_in_order(pool: Pool, nats_server: NatsServer) -> None:
    room = Room(pool=pool)
    async with relaying(pool, nats_server), consuming(room, nats_server):
        await fill(pool, runs=3, first=1, last=30)
        await until(lambda: room.has(runs=3, count=30))
    room.assert_in_order()


async def test_without_nats_the_log_alone_brings_every_event(
    pool: Pool, nats_server: NatsServer
) -> None:
    nats_server.process.kill()
    room = Room(pool=pool)
    async with consuming(room, nats_server):
        await fill(pool, runs=2, first=1, last=20)
        await until(lambda: room.has(runs=2, count=20))
    room.assert_in_order()


async def test_a_killed_nats_server_and_a_lost_store_lose_nothing(
    pool: Pool, nats_server: NatsServer
) -> None:
    room = Room(pool=pool)
    async with relaying(pool, nats_server), consuming(room, nats_server):
        await fill(pool, runs=3, first=1, last=20)
        nats_server.process.kill()
        await fill(pool, runs=3, first=21, last=40)
        nats_server.delete_store()
        await nats_server.process.start_again()
        await fill(pool, runs=3, first=41, last=60)
        await until(lambda: room.has(runs=3, count=60))
    room.assert_in_order()


async def test_live_events_flow_while_the_log_is_away(pool: Pool, nats_server: NatsServer) -> None:
    room = Room(pool=pool, log_away=True)
    async with relaying(pool, nats_server), consuming(room, nats_server):
        await fill(pool, runs=3, first=1, last=20)
        await until(lambda: room.has(runs=3, count=20))
    room.assert_in_order()


async def test_a_consumer_that_was_killed_goes_on_where_it_was(
    pool: Pool, nats_server: NatsServer
) -> None:
    room = Room(pool=pool)
    async with relaying(pool, nats_server):
        async with consuming(room, nats_server):
            await fill(pool, runs=2, first=1, last=10)
            await until(lambda: room.has(runs=2, count=10))
        await fill(pool, runs=2, first=11, last=20)
        async with consuming(room, nats_server):
            await fill(pool, runs=2, first=21, last=30)
            await until(lambda: room.has(runs=2, count=30))
    room.assert_in_order()


async def test_a_run_that_fails_keeps_no_other_waiting_and_loses_nothing(
    pool: Pool, nats_server: NatsServer
) -> None:
    room = Room(pool=pool, broken_run="run-1")
    async with relaying(pool, nats_server):
        async with consuming(room, nats_server):
            await fill(pool, runs=3, first=1, last=10)
            await until(lambda: room.has(runs=2, count=10))
        room.broken_run = ""
        async with consuming(room, nats_server):
            await until(lambda: room.has(runs=3, count=10))
    room.assert_in_order()
