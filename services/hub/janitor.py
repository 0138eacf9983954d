"""The janitor: deletes objects without a row, and expires uploads that never arrived."""

import asyncio
from datetime import timedelta
from typing import Final

from chassis import telemetry
from chassis.postgres import is_outage
from hub.domain.datasets import COMMIT_GRACE_MINUTES
from hub.store import Store
from lexicon.faults import Fault
from objects.store import ObjectStore

PAUSE_SECONDS: Final = 60.0
# Bounds one call; the next round continues. A page is a hundred objects.
MAX_PAGES: Final = 100
# Once a day the whole store is listed to find incomplete objects.
SWEEP_EVERY_ROUNDS: Final = 24 * 60

log = telemetry.logger(__name__)


class Janitor:
    """Keeps the object store in step with the rows."""

    def __init__(self, store: Store, objects: ObjectStore) -> None:
        self._store = store
        self._objects = objects

    async def run(self, stop: asyncio.Event) -> None:
        """Works in rounds until a stop is requested; an error ends only the round."""
        rounds = 0
        while not stop.is_set():
            try:
                await self.run_once()
                if rounds % SWEEP_EVERY_ROUNDS == 0:
                    await self._sweep()
            except Exception as error:
                if not (isinstance(error, Fault) or is_outage(error)):
                    raise
                log.warning("janitor round failed", reason=type(error).__name__)
            rounds += 1
            try:
                await asyncio.wait_for(stop.wait(), PAUSE_SECONDS)
            except TimeoutError:
                continue

    async def run_once(self) -> int:
        """Expires uploads, deletes garbage, and returns how many objects it deleted."""
        async with self._store.unit() as unit:
            before = await unit.now() - timedelta(minutes=COMMIT_GRACE_MINUTES)
            await unit.expire_uploads(before=before)
        return await self.collect()

    async def tidy(self) -> None:
        """Deletes garbage after a call whose own effect is committed already.

        An error here does not fail the call; the next round tries again.
        """
        try:
            await self.collect()
        except Exception as error:
            if not (isinstance(error, Fault) or is_outage(error)):
                raise
            log.warning("garbage left for the next round", reason=type(error).__name__)

    async def collect(self) -> int:
        """Deletes the objects that are garbage, and returns how many."""
        removed = 0
        for _ in range(MAX_PAGES):
            async with self._store.unit() as unit:
                keys = await unit.some_garbage()
            for key in keys:
                await self._objects.delete(key)
                async with self._store.unit() as unit:
                    await unit.forget_garbage(key)
            removed += len(keys)
            if not keys:
                break
        return removed

    async def _sweep(self) -> None:
        async with self._store.unit() as unit:
            now = await unit.now()
        removed = await self._objects.sweep(now=now)
        log.info("object store swept", removed=removed)
