"""Helpers of tests about the outbox and its projection in JetStream."""

import asyncio
import time
from collections.abc import Callable

import asyncpg
import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

from chassis import outbox, postgres
from chassis.outbox import OutboxRow
from chassis.postgres import Pool
from tests.support.nats import STREAM, NatsServer
from tunesmith.api.event.v1 import event_pb2

SUBJECTS = ("tunesmith.run.v1.>",)
WAIT_SECONDS = 20.0


def row(run: str, sequence: int) -> OutboxRow:
    """Event number `sequence` of a run of project acme."""
    name = f"projects/acme/runs/{run}"
    event = event_pb2.Event(
        event_id=f"{run}-{sequence}", run=name, sequence=sequence, type="progressed"
    )
    return OutboxRow(
        event_id=event.event_id,
        subject=f"tunesmith.run.v1.acme.{run}.progressed",
        payload=event.SerializeToString(),
        run=name,
        sequence=sequence,
        headers={"traceparent": "00-" + 32 * "a" + "-" + 16 * "b" + "-01"},
    )


async def outbox_pool(url: str, schema: str = "scheduler") -> Pool:
    """A pool on a fresh schema with the tables of a service that has an outbox."""
    pool = await postgres.open_pool(url, schema=schema)
    await postgres.migrate(pool, schema=schema, package="scheduler")
    return pool


async def append(pool: Pool, *rows: OutboxRow) -> None:
    """Append in a transaction; waits out a Postgres that is away."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            async with pool.acquire(timeout=5) as connection, connection.transaction():
                await outbox.append(connection, rows)
                return
        except Exception as error:
            if isinstance(error, asyncpg.UniqueViolationError):
                # The commit before the break had counted.
                return
            if not postgres.is_outage(error) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def stream_events(server: NatsServer) -> list[event_pb2.Event]:
    """Everything that is in the stream, in its order, read with nats-py alone."""
    client = await nats.connect(server.url("events"))
    try:
        stream = client.jetstream()
        count = (await stream.stream_info(STREAM)).state.messages
        subscription = await stream.pull_subscribe(
            "tunesmith.run.v1.>",
            stream=STREAM,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, inactive_threshold=30),
        )
        events: list[event_pb2.Event] = []
        while len(events) < count:
            for message in await subscription.fetch(256, timeout=5):
                events.append(event_pb2.Event.FromString(message.data))
                await message.ack()
        return events
    finally:
        await client.close()


async def published(pool: Pool, count: int) -> None:
    """Wait until so many rows are marked as published and none is left."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                async with pool.acquire(timeout=5) as connection:
                    done = await connection.fetchrow(
                        "SELECT count(publish_time) AS done, count(*) AS total FROM outbox"
                    )
            except Exception as error:
                if not postgres.is_outage(error):
                    raise
            else:
                assert done is not None
                if done["done"] == done["total"] == count:
                    return
            await asyncio.sleep(0.05)


def assert_gapless(events: list[event_pb2.Event], *, runs: int, count: int) -> None:
    """Every run's events are there exactly once and in order."""
    by_run: dict[str, list[int]] = {}
    for event in events:
        by_run.setdefault(event.run, []).append(event.sequence)
    assert len(by_run) == runs
    for sequences in by_run.values():
        assert sequences == list(range(1, count + 1))


async def until(condition: Callable[[], bool], *, seconds: float = WAIT_SECONDS) -> None:
    """Wait for something that happens elsewhere."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
