"""What a worker reports that it does while it has no metrics."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from chassis.leasing import LeaseSession
from objects.cache import folder_bytes
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_service_pb2

# A heartbeat carries no more than the newest anyway.
LOOK_SECONDS: Final = 1.0
DOWNLOAD_TEXT: Final = "downloading the base model"


def report(text: str, percent: float | None = None) -> work_service_pb2.TaskReport:
    """A report of an activity, `percent` from 0 to 100 where it is known."""
    return work_service_pb2.TaskReport(activity=run_pb2.Activity(text=text, percent=percent))


@asynccontextmanager
async def downloading(
    session: LeaseSession, *, folder: Path, needed_bytes: int
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Reports every second how far the download of a base is, by what has come into its folder.

    Yields a function that reports at once, for callers that cannot wait for the next second.

    Args:
        needed_bytes: what is to come; 0 or less when that is not known.
    """
    before_bytes = await asyncio.to_thread(folder_bytes, folder)

    async def look() -> None:
        come_bytes = await asyncio.to_thread(folder_bytes, folder) - before_bytes
        percent = 100.0 * min(max(come_bytes / needed_bytes, 0.0), 1.0)
        session.report(report(DOWNLOAD_TEXT, percent))

    async def look_again() -> None:
        while needed_bytes > 0:
            await asyncio.sleep(LOOK_SECONDS)
            await look()

    session.report(report(DOWNLOAD_TEXT, 0.0 if needed_bytes > 0 else None))
    looking = asyncio.create_task(look_again())
    try:
        yield look
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
