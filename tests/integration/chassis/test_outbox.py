"""The outbox and its relay against a real Postgres and a real nats-server that are killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import nats
import pytest

from chassis import outbox
from chassis.outbox import OutboxRelay
from chassis.postgres import Pool
from lexicon.faults import Fault, FaultCode
from tests.support.events import (
    SUBJECTS,
    append,
    assert_gapless,
    outbox_pool,
    published,
    row,
    stream_events,
)
from tests.support.nats import STREAM, NatsServer
from tests.support.postgres import PostgresServer
from tunesmith.api.event.v1 import event_pb2

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await outbox_pool(database_url)
    yield opened
    opened.terminate()


@contextlib.asynccontextmanager
async def relaying(pool: Pool, server: NatsServer) -> AsyncIterator[None]:
    """A relay that runs until the block ends."""
    stop = asyncio.Event()
    relay = OutboxRelay(pool, server.url("scheduler"), STREAM, SUBJECTS)
    running = asyncio.create_task(relay.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await running


async def test_every_event_is_published_once_and_in_order_within_its_run(
    pool: Pool, nats_server: NatsServer
) -> None:
    async with relaying(pool, nats_server):
        for sequence in range(1, 41):
            await append(pool, *(row(f"run-{number}", sequence) for number in range(5)))
        await published(pool, 200)
    assert_gapless(await stream_events(nats_server), runs=5, count=40)


async def test_a_killed_nats_server_loses_and_doubles_nothing(
    pool: Pool, nats_server: NatsServer
) -> None:
    """2.7: kill -9 of nats-server in mid-stream, twice."""
    async with relaying(pool, nats_server):
        for sequence in range(1, 101):
            await append(pool, *(row(f"run-{number}", sequence) for number in range(4)))
            if sequence in (30, 70):
                nats_server.process.kill()
            if sequence in (50, 90):
                await nats_server.process.start_again()
        await published(pool, 400)
    assert_gapless(await stream_events(nats_server), runs=4, count=100)


async def test_a_relay_that_is_killed_after_the_acknowledgement_publishes_nothing_twice(
    pool: Pool, nats_server: NatsServer
) -> None:
    async with relaying(pool, nats_server):
        await append(pool, *(row("run-1", sequence) for sequence in range(1, 11)))
        await published(pool, 10)
    # As if the process had died between the server's acknowledgement and the mark.
    await pool.execute("UPDATE outbox SET publish_time = NULL, stream_sequence = NULL")
    async with relaying(pool, nats_server):
        await published(pool, 10)
    assert_gapless(await stream_events(nats_server), runs=1, count=10)


async def test_a_restarted_postgres_interrupts_but_ends_nothing(
    pool: Pool, nats_server: NatsServer, postgres_server: PostgresServer
) -> None:
    async with relaying(pool, nats_server):
        for sequence in range(1, 61):
            if sequence == 20:
                postgres_server.process.kill()
                await postgres_server.process.start_again()
            await append(pool, row("run-1", sequence), row("run-2", sequence))
        await published(pool, 120)
    assert_gapless(await stream_events(nats_server), runs=2, count=60)


async def test_a_lost_jetstream_store_is_published_again(
    pool: Pool, nats_server: NatsServer
) -> None:
    """Deleting the whole JetStream store loses nothing."""
    async with relaying(pool, nats_server):
        await append(pool, *(row("run-1", sequence) for sequence in range(1, 51)))
        await published(pool, 50)
        nats_server.process.kill()
        nats_server.delete_store()
        await nats_server.process.start_again()
        await append(pool, row("run-1", 51))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while len(await _events_or_none(nats_server)) < 51:
                await asyncio.sleep(0.1)
        await published(pool, 51)
    assert_gapless(await stream_events(nats_server), runs=1, count=51)


async def test_a_stream_that_lost_its_end_gets_it_back(pool: Pool, nats_server: NatsServer) -> None:
    """A store that came back older than what was acknowledged, as after a power failure."""
    async with relaying(pool, nats_server):
        await append(pool, *(row("run-1", sequence) for sequence in range(1, 11)))
        await published(pool, 10)
    # Five more that the table believes to be published and the stream never saw.
    await append(pool, *(row("run-1", sequence) for sequence in range(11, 16)))
    await pool.execute(
        "UPDATE outbox SET publish_time = now(), stream_sequence = sequence WHERE sequence > 10"
    )
    await pool.execute("UPDATE outbox_streams SET last_sequence = 15")
    async with relaying(pool, nats_server):
        async with asyncio.timeout(20):
            while len(await stream_events(nats_server)) < 15:
                await asyncio.sleep(0.1)
        await published(pool, 15)
    assert_gapless(await stream_events(nats_server), runs=1, count=15)


async def test_two_relays_share_one_outbox(pool: Pool, nats_server: NatsServer) -> None:
    async with relaying(pool, nats_server), relaying(pool, nats_server):
        for sequence in range(1, 31):
            await append(pool, *(row(f"run-{number}", sequence) for number in range(4)))
        await published(pool, 120)
    assert_gapless(await stream_events(nats_server), runs=4, count=30)


async def test_events_carry_their_id_and_trace(pool: Pool, nats_server: NatsServer) -> None:
    async with relaying(pool, nats_server):
        await append(pool, row("run-1", 1))
        await published(pool, 1)
    client = await nats.connect(nats_server.url("scheduler"))
    message = await client.jetstream().get_msg(STREAM, seq=1)
    await client.close()
    assert message.headers is not None
    assert message.headers["Nats-Msg-Id"] == "run-1-1"
    assert message.headers["traceparent"] == row("run-1", 1).headers["traceparent"]
    assert message.subject == "tunesmith.run.v1.acme.run-1.progressed"


async def test_nothing_leaves_a_transaction_that_was_rolled_back(pool: Pool) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with pool.acquire() as connection, connection.transaction():
            await outbox.append(connection, [row("run-1", 1)])
            raise ZeroDivisionError
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_the_log_hands_out_nothing_while_an_earlier_event_may_still_come(
    pool: Pool,
) -> None:
    async with pool.acquire() as slow, pool.acquire() as reader:
        await append(pool, row("run-1", 1))
        late = slow.transaction()
        await late.start()
        await outbox.append(slow, [row("run-2", 1)])
        await append(pool, row("run-3", 1))
        reading = asyncio.create_task(outbox.read_after(reader, "", limit=10))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert not done
        await late.commit()
        payloads, cursor = await reading
    assert [event_pb2.Event.FromString(payload).run[-5:] for payload in payloads] == [
        "run-1",
        "run-2",
        "run-3",
    ]
    async with pool.acquire() as connection:
        assert await outbox.read_after(connection, cursor, limit=10) == ([], cursor)


async def test_the_log_does_not_wait_for_transactions_of_others(pool: Pool) -> None:
    await append(pool, row("run-1", 1))
    await pool.execute("CREATE TABLE other (id int)")
    async with pool.acquire() as slow, pool.acquire() as reader:
        open_one = slow.transaction()
        await open_one.start()
        await slow.execute("INSERT INTO other VALUES (1)")
        async with asyncio.timeout(1):
            payloads, _ = await outbox.read_after(reader, "", limit=10)
        await open_one.rollback()
    assert len(payloads) == 1


async def test_pages_of_the_log_join_without_a_seam(pool: Pool) -> None:
    await append(pool, *(row("run-1", sequence) for sequence in range(1, 8)))
    seen: list[int] = []
    cursor = ""
    async with pool.acquire() as connection:
        while True:
            payloads, cursor = await outbox.read_after(connection, cursor, limit=3)
            if not payloads:
                break
            seen += [event_pb2.Event.FromString(payload).sequence for payload in payloads]
    assert seen == [1, 2, 3, 4, 5, 6, 7]


async def test_a_made_up_cursor_is_refused(pool: Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(Fault) as refused:
            await outbox.read_after(connection, "1; DROP TABLE outbox", limit=1)
    assert refused.value.code is FaultCode.INPUT_PAGE_TOKEN_INVALID


async def _events_or_none(server: NatsServer) -> list[event_pb2.Event]:
    with contextlib.suppress(nats.js.errors.NotFoundError):
        return await stream_events(server)
    return []
