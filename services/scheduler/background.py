"""What happens without a call: lost nodes, limits, progress, half-made submissions.

Each is a `run_once` that returns how much it did, and a loop around it. Any number of schedulers
may do it at
once: rows are taken with SKIP LOCKED and looked at again under their lock.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from chassis import postgres, telemetry
from lexicon.faults import Fault
from scheduler.domain import limits
from scheduler.domain.decision import decide
from scheduler.domain.signals import Loss, Tick
from scheduler.store import Store
from scheduler.work import lose

log = telemetry.logger(__name__)

REAP_SECONDS: Final = 0.5
TICK_SECONDS: Final = 0.5
HEAL_SECONDS: Final = 10.0
LISTEN_SECONDS: Final = 1.0


class Reaper:
    """Takes leases from nodes that were silent for too long.

    Silence counts only while somebody listened: after a start, an outage of the database or a
    frozen process, every node gets a whole lease of time to be heard again. So a pause of the
    scheduler does not cost a healthy run its attempt.
    """

    def __init__(self, store: Store, *, lease: timedelta) -> None:
        self._store = store
        self._lease = lease
        self._heard_time: datetime | None = None
        self._grace_time: datetime | None = None

    async def run_once(self) -> int:
        """Returns how many leases were taken."""
        async with self._store.transaction() as transaction:
            now = await transaction.now()
            expired = await transaction.expired_leases()
        if self._heard_time is None or now - self._heard_time > self._lease / 3:
            self._grace_time = now + self._lease
        self._heard_time = now
        if self._grace_time is not None and now < self._grace_time:
            return 0
        count = 0
        for lease, run in expired:
            count += await lose(self._store, run, lease, Loss.EXPIRED)
        return count


class Ticker:
    """Tells progress and holds runs to their limits."""

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
                await transaction.commit(decision)
                count += decision.changes
        return count


async def every(
    seconds: float, run_once: Callable[[], Awaitable[object]], stop: asyncio.Event
) -> None:
    """Runs something again and again until told to stop; what is away for a while is waited for."""
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


def _name(run_once: Callable[[], Awaitable[object]]) -> str:
    """A name for the log, also of what wraps another function."""
    inner = getattr(run_once, "func", run_once)
    return str(getattr(inner, "__qualname__", inner))
