"""Kills nats-server, Postgres and the relay again and again while events flow.

`python -m tests.chaos.outbox [--seconds 60] [--seed 1]` ends with one JSON line: every event must
be in the stream exactly once and in order within its run, and so must a reader of the log see it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from chassis import outbox
from chassis.outbox import OutboxRelay
from chassis.postgres import Pool
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

RUN_COUNT = 12
WRITER_COUNT = 4
WRITE_SECONDS = 0.01


async def write(pool: Pool, runs: list[str], counts: dict[str, int], stop: asyncio.Event) -> None:
    """One writer owns its runs, as the lock of a run's row would see to."""
    while not stop.is_set():
        for run in runs:
            await append(pool, row(run, counts[run] + 1))
            counts[run] += 1
            await asyncio.sleep(WRITE_SECONDS)


async def relay(pool: Pool, server: NatsServer, rng: random.Random, stop: asyncio.Event) -> int:
    """Relays that are cut off in mid-work, one after another; the count of those that died."""
    died = 0
    while not stop.is_set():
        working = OutboxRelay(pool, server.url("scheduler"), STREAM, SUBJECTS)
        running = asyncio.create_task(working.run(stop))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.5, 4)):
                await asyncio.shield(running)
        if not running.done():
            running.cancel()
            died += 1
        await asyncio.gather(running, return_exceptions=True)
    return died


async def kill(
    nats: NatsServer, database: PostgresServer, rng: random.Random, *, seconds: float
) -> dict[str, int]:
    """Kill and start again until the time is over; how often each was killed."""
    kills = {"nats": 0, "postgres": 0, "store": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(rng.uniform(0.1, 1.5))
        victim = rng.choice(["nats", "nats", "postgres", "store"])
        kills[victim] += 1
        process = database.process if victim == "postgres" else nats.process
        process.kill()
        if victim == "store":
            nats.delete_store()
        await asyncio.sleep(rng.uniform(0, 0.8))
        await process.start_again()
    return kills


async def log_of(pool: Pool) -> list[event_pb2.Event]:
    """What a reader of the log sees, page by page."""
    events: list[event_pb2.Event] = []
    cursor = ""
    async with pool.acquire() as connection:
        while True:
            payloads, cursor = await outbox.read_after(connection, cursor, limit=100)
            if not payloads:
                return events
            events += [event_pb2.Event.FromString(payload) for payload in payloads]


async def storm(
    nats: NatsServer, database: PostgresServer, *, seconds: float, seed: int
) -> dict[str, object]:
    """The whole run; raises AssertionError when anything was lost, doubled or reordered."""
    rng = random.Random(seed)
    url = await database.create_database()
    pool = await outbox_pool(url)
    stop, quiet = asyncio.Event(), asyncio.Event()
    names = [f"run-{number}" for number in range(RUN_COUNT)]
    counts = dict.fromkeys(names, 0)
    writers = [
        asyncio.create_task(write(pool, names[number::WRITER_COUNT], counts, quiet))
        for number in range(WRITER_COUNT)
    ]
    relaying = asyncio.create_task(relay(pool, nats, rng, stop))
    kills = await kill(nats, database, rng, seconds=seconds)
    quiet.set()
    await asyncio.gather(*writers)
    await published(pool, sum(counts.values()))
    stop.set()
    died = await relaying
    for events in (await stream_events(nats), await log_of(pool)):
        by_run: dict[str, list[event_pb2.Event]] = {}
        for event in events:
            by_run.setdefault(event.run.rpartition("/")[2], []).append(event)
        assert set(by_run) == set(names)
        for name, own in by_run.items():
            assert_gapless(own, runs=1, count=counts[name])
    pool.terminate()
    return {"events": sum(counts.values()), "kills": {**kills, "relay": died}}


def main() -> int:
    """Run it and print one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = PostgresServer(Path(folder) / "postgres")
        nats = NatsServer(Path(folder) / "nats")
        database.start()
        nats.start()
        try:
            result = asyncio.run(storm(nats, database, seconds=options.seconds, seed=options.seed))
        finally:
            nats.remove()
            database.remove()
    sys.stdout.write(json.dumps({"chaos": "outbox", "seed": options.seed, **result}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
