"""What happens without a call: lost nodes, limits, progress, half-made submissions, leftovers.

Each is a `run_once` that returns how much it did, and a loop around it. Any number of schedulers
may do it at once: rows are taken with SKIP LOCKED and looked at again under their lock.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from chassis import postgres, telemetry
from lexicon.faults import Fault
from scheduler import events, wire, wire_work
from scheduler.domain import leftovers, limits
from scheduler.domain.decision import decide
from scheduler.domain.leftovers import Sweep
from scheduler.domain.run import Document
from scheduler.domain.signals import Loss, Tick
from scheduler.kinds import Kinds
from scheduler.peers import Peers
from scheduler.store import Store
from scheduler.work import lose
from tunesmith.api.run.v1 import run_pb2

log = telemetry.logger(__name__)

REAP_SECONDS: Final = 0.5
TICK_SECONDS: Final = 0.5
HEAL_SECONDS: Final = 10.0
LISTEN_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 2.0
ALERT_SECONDS: Final = 1.0

# Bounds one round, so that a stop is not waited for long.
MAX_SWEEPS: Final = 20


class Reaper:
    """Takes leases from nodes that were silent for too long.

    Silence counts only while somebody listened: after a start, an outage of the database or a
    frozen process, every node gets a whole lease of time to be heard again. So a pause of the
    scheduler does not cost a healthy run its attempt.
    """

    def __init__(self, store: Store, kinds: Kinds, *, lease: timedelta) -> None:
        self._store = store
        self._kinds = kinds
        self._lease = lease
        self._heard_time: datetime | None = None
        self._grace_time: datetime | None = None

    async def run_once(self) -> int:
        """Returns how many leases were taken."""
        async with self._store.transaction() as transaction:
            now = await transaction.now()
            expired = await transaction.tasks.expired_leases()
        if self._heard_time is None or now - self._heard_time > self._lease / 3:
            self._grace_time = now + self._lease
        self._heard_time = now
        if self._grace_time is not None and now < self._grace_time:
            return 0
        count = 0
        for lease, owner in expired:
            count += await lose(self._store, self._kinds, owner, lease, Loss.EXPIRED)
        return count


class Ticker:
    """Reports progress and holds runs to their limits."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run_once(self) -> int:
        """Returns how many runs changed."""
        async with self._store.transaction() as transaction:
            runs = await transaction.training_runs(
                limits.PROGRESS_INTERVAL,
                age_of_young=limits.YOUNG_PROGRESS_INTERVAL,
                young=limits.YOUNG_AGE,
            )
        count = 0
        for run in runs:
            async with self._store.transaction() as transaction:
                locked = await transaction.lock_run_if_free(run)
                if locked is None:
                    continue
                record, now = locked
                decision = decide(record.run, Tick(), now)
                await transaction.commit(decision, outgoing=events.outgoing(decision))
                count += decision.changes
        return count


class Sweeper:
    """Has the hub remove what runs leave behind; what the hub does not answer is tried again."""

    def __init__(self, store: Store, peers: Peers) -> None:
        self._store = store
        self._peers = peers

    async def run_once(self) -> int:
        """Returns how many sweeps were made.

        Raises:
            Fault: what the hub refuses; that run has its rest, the next round goes on with others.
        """
        for count in range(MAX_SWEEPS):
            async with self._store.transaction() as transaction:
                sweep = await transaction.claim_sweep()
            if sweep is None:
                return count
            again_after = await (self._ended(sweep) if sweep.ended else self._under_way(sweep))
            async with self._store.transaction() as transaction:
                await transaction.settle_sweep(sweep, again_after=again_after)
        return MAX_SWEEPS

    async def _ended(self, sweep: Sweep) -> timedelta | None:
        """Sweeps after the end of a run or an export; returns when again."""
        number = sweep.sweep_count + 1
        if leftovers.is_of_export(sweep):
            swept = await self._peers.sweep_export(sweep.run, number=number)
        else:
            swept = await self._peers.sweep_ended(
                sweep.run, number=number, adapter_uris=_uris(sweep.adapter)
            )
        removed_count, again_after = swept
        if removed_count:
            log.info("leftovers removed", run=sweep.run, objects=removed_count, sweep=number)
        is_last = leftovers.is_last(sweep, removed_count=removed_count)
        return None if is_last else again_after

    async def _under_way(self, sweep: Sweep) -> None:
        """Removes superseded checkpoints of a run that goes on."""
        async with self._store.transaction() as transaction:
            record, _ = await transaction.read_run(sweep.run)
            superseded = await transaction.superseded(sweep.run)
        snapshot = wire.parse(run_pb2.RunSnapshot, record.submission.snapshot)
        newest = record.run.checkpoint
        needed = set(_uris(newest.files)) if newest else set()
        keep_count = snapshot.training.checkpoint_keep_count
        for point in leftovers.surplus(superseded, keep_count=keep_count):
            uris = [uri for uri in _uris(point.files) if uri not in needed]
            if uris:
                await self._peers.remove_objects(sweep.run, uris, key=str(point.position))
            async with self._store.transaction() as transaction:
                await transaction.forget_superseded(point.position)


async def every(
    seconds: float, run_once: Callable[[], Awaitable[object]], stop: asyncio.Event
) -> None:
    """Runs something in rounds until a stop is requested; waits out outages of what it needs."""
    while not stop.is_set():
        try:
            await run_once()
        except Fault as fault:
            log.warning("will try again", task=_name(run_once), code=fault.code)
        except Exception as error:
            if not postgres.is_outage(error):
                raise
            log.warning("will try again", task=_name(run_once), reason=str(error))
        if not stop.is_set():
            await pause(stop, seconds=seconds)


async def pause(stop: asyncio.Event, *, seconds: float) -> None:
    """Sleeps, but not beyond the stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _uris(files: Document) -> list[str]:
    return [file.uri for file in wire_work.unpack_files(files)]


def _name(run_once: Callable[[], Awaitable[object]]) -> str:
    """A name for the log, also of what wraps another function."""
    inner = getattr(run_once, "func", run_once)
    return str(getattr(inner, "__qualname__", inner))
