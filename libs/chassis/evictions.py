"""Make room in a node's cache of models; each eviction is a line in the log and a metric."""

import asyncio
from functools import cache as once

from opentelemetry import metrics

from chassis import telemetry
from objects.cache import Evicted, FolderCache

log = telemetry.logger(__name__)


async def make_room(cache: FolderCache, needed_bytes: int) -> None:
    """Evicts least recently used entries until so many bytes fit or no entry can be evicted."""
    for evicted in await asyncio.to_thread(cache.make_room, needed_bytes):
        report(evicted)


def report(evicted: Evicted) -> None:
    """Logs and counts an evicted entry."""
    log.info("cache_evicted", entry=evicted.name, size_bytes=evicted.size_bytes)
    _counter().add(evicted.size_bytes)


@once
def _counter() -> metrics.Counter:
    return telemetry.meter().create_counter(
        "tunesmith.cache.evicted",
        unit="By",
        description="Bytes of models that were deleted from a node's cache to make room.",
    )
