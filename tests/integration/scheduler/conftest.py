"""A running scheduler with fakes of its neighbours."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.nats import NatsServer
from tests.support.scheduling import (
    Neighbours,
    SchedulerProcess,
    neighbours,
    scheduler_process,
)


@pytest_asyncio.fixture
async def fakes() -> AsyncIterator[Neighbours]:
    """The validator, billing and the hub."""
    async with neighbours() as found:
        yield found


@pytest_asyncio.fixture
async def scheduler(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, tmp_path: Path
) -> AsyncIterator[SchedulerProcess]:
    """One scheduler process, started."""
    process = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=tmp_path,
    )
    await process.start()
    try:
        yield process
    finally:
        process.stop()
