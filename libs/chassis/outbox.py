"""Events leave through Postgres: appended with the change that they report, published afterwards.

`append` runs in the transaction of the change. One relay of a schema at a time publishes what is
not published yet: in order within a run, each with its event id as `Nats-Msg-Id`, marked once the
server has acknowledged it. What was acknowledged but not yet marked is published again and taken
for a duplicate by the server. Published rows stay: the table is the event log, and JetStream its
projection, which is published again when it was lost.
"""

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig, StreamInfo

from chassis import jetstream, postgres, telemetry
from chassis.links import refuse_open_nats
from chassis.postgres import Connection, Pool
from lexicon.faults import Fault, FaultCode

log = telemetry.logger(__name__)

# The server takes a mebibyte with headers.
PAYLOAD_BYTES_MAX = 900_000
BATCH_ROWS = 256
IN_FLIGHT_MAX = 32
POLL_SECONDS = 1.0
RETRY_SECONDS_MAX = 3.0
DUPLICATE_WINDOW_SECONDS = 24 * 3600.0
RESET_ROWS = 5000
# Namespace of the advisory locks of relays; the second half of the key is the schema.
RELAY_LOCK = 7_203_102
SETTLE_SECONDS = 3.0
SETTLE_POLL_SECONDS = 0.01

_ANNOUNCE = "SELECT pg_notify('outbox_' || current_schema(), '')"
_INSERT = """
INSERT INTO outbox (event_id, subject, payload, headers, run, sequence)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_UNPUBLISHED = """
SELECT position, event_id, subject, payload, headers, run, sequence, create_time FROM outbox
WHERE publish_time IS NULL ORDER BY position LIMIT $1
"""
_MARK = """
UPDATE outbox SET publish_time = now(), stream_sequence = done.stream_sequence
FROM unnest($1::bigint[], $2::bigint[]) AS done (position, stream_sequence)
WHERE outbox.position = done.position
"""
_LAST = """
UPDATE outbox_streams SET last_sequence = greatest(last_sequence, $2) WHERE stream = $1
"""
_REMEMBER = """
INSERT INTO outbox_streams (stream, created, last_sequence) VALUES ($1, $2, $3)
ON CONFLICT (stream) DO UPDATE SET created = $2, last_sequence = $3
"""
_RESET = """
UPDATE outbox SET publish_time = NULL, stream_sequence = NULL
WHERE position > $1 AND position <= $2 AND publish_time IS NOT NULL
"""
_RESET_TAIL = """
UPDATE outbox SET publish_time = NULL, stream_sequence = NULL WHERE stream_sequence > $1
"""
_HIGHEST = "SELECT position FROM outbox WHERE position > $1 ORDER BY position LIMIT $2"
# A transaction takes this lock before its first position and keeps it until it has ended.
_WRITERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND relation = 'outbox'::regclass AND mode = 'RowExclusiveLock'
  AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_AFTER = """
SELECT position, payload FROM outbox
WHERE position > $1 AND position <= $2 ORDER BY position
"""

_TROUBLE: tuple[type[Exception], ...] = (
    *jetstream.TROUBLE,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # What asyncpg raises when its connection breaks in the middle of an exchange.
    asyncpg.InternalClientError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One event on its way out.

    Attributes:
        event_id: the same on every delivery; the server's deduplication rests on it.
        subject: where it goes, for example `tunesmith.run.v1.acme.run-1.run_ended`.
        payload: the event, serialized.
        run: name of the run; order is kept within it.
        sequence: number within the run, from 1.
        headers: for example `traceparent`.
    """

    event_id: str
    subject: str
    payload: bytes
    run: str
    sequence: int
    headers: Mapping[str, str] = field(default_factory=dict)


async def append(connection: Connection, rows: Sequence[OutboxRow]) -> None:
    """Add events in the transaction of the change; its caller holds the run's lock."""
    assert connection.is_in_transaction()
    assert all(len(row.payload) <= PAYLOAD_BYTES_MAX for row in rows)
    if not rows:
        return
    await connection.execute(_ANNOUNCE)
    await connection.executemany(
        _INSERT,
        [
            (row.event_id, row.subject, row.payload, json.dumps(dict(row.headers)), row.run,
             row.sequence)
            for row in rows
        ],
    )  # fmt: skip


async def read_after(connection: Connection, cursor: str, *, limit: int) -> tuple[list[bytes], str]:
    """The payloads after a cursor in the order in which they were stored, and the next cursor.

    Nothing is left out for good: positions are given before transactions commit, so a row is only
    handed out when every transaction that could still add one before it has ended.

    Args:
        connection: outside any transaction.
        cursor: what the last call gave; empty for the beginning.
        limit: most payloads, at least 1.
    Raises:
        Fault: INPUT_PAGE_TOKEN_INVALID; DEP_SERVICE_UNAVAILABLE while a transaction stays open, so
            that an empty answer means that there is nothing more.
    """
    assert limit >= 1
    assert not connection.is_in_transaction()
    after = _position_of(cursor)
    found = await connection.fetch(_HIGHEST, after, limit)
    if not found:
        return [], cursor or "0"
    if not await _settled(connection):
        raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, "A transaction stays open for long.")
    rows = await connection.fetch(_AFTER, after, found[-1]["position"])
    return [row["payload"] for row in rows], str(rows[-1]["position"])


class OutboxRelay:
    """Publishes the outbox of one schema, as long as its process lives."""

    def __init__(
        self,
        pool: Pool,
        nats_url: str,
        stream: str,
        subjects: Sequence[str],
        *,
        replicas: int = 1,
    ) -> None:
        """Make it.

        Args:
            pool: of the schema that holds the outbox.
            nats_url: `nats://user:password@host:port`.
            stream: name of the JetStream stream; it is made when it is missing.
            subjects: what the stream takes, for example `tunesmith.run.v1.>`.
            replicas: copies of the stream in a cluster of servers.
        """
        # Before anything is served, and not only when the first connection is made.
        refuse_open_nats(nats_url)
        self._pool = pool
        self._nats_url = nats_url
        self._stream = stream
        self._config = StreamConfig(
            name=stream,
            subjects=list(subjects),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_age=0,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
            num_replicas=replicas,
            allow_direct=True,
        )
        self._wake = asyncio.Event()
        self._delay = telemetry.meter().create_histogram(
            "tunesmith.outbox.delay", unit="s", description="From the change to its publication."
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until a stop is requested; wait out outages of server and database."""
        wait_seconds = 0.1
        async with asyncio.TaskGroup() as group:
            waker = group.create_task(self._wake_at(stop))
            while not stop.is_set():
                try:
                    await self._session(stop)
                    wait_seconds = 0.1
                except _TROUBLE as error:
                    if isinstance(error, asyncpg.PostgresError) and not postgres.is_outage(error):
                        raise
                    log.warning(
                        "relay interrupted",
                        stream=self._stream,
                        reason=f"{type(error).__name__}: {error}",
                    )
                    await _sleep(stop, wait_seconds * random.uniform(0.5, 1.0))
                    wait_seconds = min(2 * wait_seconds, RETRY_SECONDS_MAX)
            waker.cancel()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _session(self, stop: asyncio.Event) -> None:
        """Publish over one connection to each side, until one of them ends."""
        async with self._pool.acquire(timeout=postgres.CONNECT_SECONDS) as connection:
            schema = await connection.fetchval("SELECT current_schema()")
            if not await connection.fetchval(
                "SELECT pg_try_advisory_lock($1, $2)", RELAY_LOCK, _key_of(schema)
            ):
                # Another replica relays; this one waits to take over.
                await _sleep(stop, POLL_SECONDS)
                return
            await connection.add_listener(f"outbox_{schema}", self._notified)
            closed = asyncio.Event()

            def on_closed() -> None:
                closed.set()
                self._wake.set()

            client = await jetstream.connect(
                self._nats_url, name=f"{schema}-relay", on_closed=on_closed
            )
            try:
                stream = jetstream.context(client)
                await self._ensure_stream(connection, stream)
                while not stop.is_set() and not closed.is_set() and client.is_connected:
                    self._wake.clear()
                    if await self.run_once(connection, stream) < BATCH_ROWS:
                        await self._until_woken()
            finally:
                await jetstream.close(client)
                # A connection that broke has left the pool already.
                with contextlib.suppress(asyncpg.InterfaceError):
                    await connection.remove_listener(f"outbox_{schema}", self._notified)

    async def run_once(self, connection: Connection, stream: JetStreamContext) -> int:
        """Publish one batch and return its size.

        What was acknowledged is marked even when a later event of the batch failed.
        """
        rows = await connection.fetch(_UNPUBLISHED, BATCH_ROWS)
        if not rows:
            return 0
        known = await connection.fetchval(
            "SELECT last_sequence FROM outbox_streams WHERE stream = $1", self._stream
        )
        by_run: dict[str, list[asyncpg.Record]] = {}
        for row in rows:
            by_run.setdefault(row["run"], []).append(row)
        gate = asyncio.Semaphore(IN_FLIGHT_MAX)
        done: dict[int, int] = {}
        outcomes = await asyncio.gather(
            *(self._publish_run(stream, gate, part, known, done) for part in by_run.values()),
            return_exceptions=True,
        )
        if done:
            async with connection.transaction():
                await connection.execute(_MARK, list(done), list(done.values()))
                await connection.execute(_LAST, self._stream, max(done.values()))
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(rows)

    async def _publish_run(
        self,
        stream: JetStreamContext,
        gate: asyncio.Semaphore,
        rows: Iterable[asyncpg.Record],
        known: int,
        done: dict[int, int],
    ) -> None:
        """Publish the events of one run one after another, each acknowledged before the next."""
        for row in rows:
            headers: dict[str, str] = json.loads(row["headers"])
            headers["Nats-Msg-Id"] = row["event_id"]
            async with gate:
                ack = await stream.publish(
                    row["subject"], row["payload"], stream=self._stream, headers=headers
                )
            if not ack.duplicate and ack.seq <= known:
                raise _StreamReplacedError
            done[row["position"]] = ack.seq
            waited = datetime.now(UTC) - row["create_time"]
            self._delay.record(max(waited.total_seconds(), 0.0), {"stream": self._stream})

    async def _ensure_stream(self, connection: Connection, stream: JetStreamContext) -> None:
        """Make the stream, or bring it up to date; publish again what it does not hold any more."""
        info = await jetstream.stream_info(stream, self._stream)
        if info is None:
            info = await stream.add_stream(self._config)
        elif _differs(info.config, self._config):
            info = await stream.update_stream(self._config)
        created = jetstream.created_of(info)
        row = await connection.fetchrow(
            "SELECT created, last_sequence FROM outbox_streams WHERE stream = $1", self._stream
        )
        if row is None or row["created"] != created:
            await self._publish_all_again(connection, info, created, known=row is not None)
        elif info.state.last_seq < row["last_sequence"]:
            log.warning(
                "stream lost its end",
                stream=self._stream,
                last_sequence=info.state.last_seq,
                expected=row["last_sequence"],
            )
            await connection.execute(_RESET_TAIL, info.state.last_seq)
            await connection.execute(_REMEMBER, self._stream, created, info.state.last_seq)

    async def _publish_all_again(
        self, connection: Connection, info: StreamInfo, created: str, *, known: bool
    ) -> None:
        highest = await connection.fetchval("SELECT max(position) FROM outbox") or 0
        if known:
            log.warning("stream is a new one", stream=self._stream, events=highest)
        for start in range(0, highest, RESET_ROWS):
            await connection.execute(_RESET, start, start + RESET_ROWS)
        # Only now: a crash before this line starts over.
        await connection.execute(_REMEMBER, self._stream, created, info.state.last_seq)

    async def _until_woken(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return

    def _notified(self, *_: Any) -> None:
        self._wake.set()


class _StreamReplacedError(OSError):
    """The stream counts from the beginning again: it was deleted and created again meanwhile."""


async def _settled(connection: Connection) -> bool:
    """Wait until all who wrote to the outbox at the call have ended; False when it takes long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    waited_for = await _writers(connection)
    while waited_for:
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(SETTLE_POLL_SECONDS)
        waited_for &= await _writers(connection)
    return True


async def _writers(connection: Connection) -> set[str]:
    return {row["virtualtransaction"] for row in await connection.fetch(_WRITERS)}


def _position_of(cursor: str) -> int:
    if not cursor:
        return 0
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 18:
        raise Fault(FaultCode.INPUT_PAGE_TOKEN_INVALID)
    return int(cursor)


def _differs(current: StreamConfig, wanted: StreamConfig) -> bool:
    return (
        sorted(current.subjects or []) != sorted(wanted.subjects or [])
        or current.duplicate_window != wanted.duplicate_window
        or current.num_replicas != wanted.num_replicas
    )


def _key_of(schema: str) -> int:
    return int.from_bytes(hashlib.sha256(schema.encode()).digest()[:4], "big", signed=True)


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
