"""Room in a node's cache of models, and what had to go for it: a line in the log and a number."""

import asyncio
from functools import cache as once

from opentelemetry import metrics

from chassis import telemetry
from objects.cache import Evicted, FolderCache

log = telemetry.logger(__name__)


async def make_room(cache: FolderCache, needed_bytes: int) -> None:
    """Deletes what was not used for longest, until so many bytes fit or nothing else can go."""
    for evicted in await asyncio.to_thread(cache.make_room, needed_bytes):
        report(evicted)


def report(evicted: Evicted) -> None:
    """Logs and counts an entry that went."""
    log.info("cache_evicted", entry=evicted.name, size_bytes=evicted.size_bytes)
    _counter().add(evicted.size_bytes)


@once
def _counter() -> metrics.Counter:
    return telemetry.meter().create_counter(
        "tunesmith.cache.evicted",
        unit="By",
        description="Bytes of models that were deleted from a node's cache to make room.",
    )
