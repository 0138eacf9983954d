"""A desk service inside a test: served by the real chassis on a free port, with real tokens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc.aio

from chassis.client import connect
from chassis.identity import Role, mint
from chassis.server import Background, run_server

SIGNING_KEY = "signing-key-of-tests-with-enough-bytes-0123456789"
START_SECONDS = 10.0

Register = Callable[[grpc.aio.Server], Sequence[str]]


@asynccontextmanager
async def serving(
    register: Register, *, background: Sequence[Background] = ()
) -> AsyncIterator[str]:
    """Serves on a free port of loopback and gives the address; ends with the block."""
    stop = asyncio.Event()
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_server(
            service="test",
            listen="127.0.0.1:0",
            tls=None,
            signing_key=SIGNING_KEY,
            register=register,
            background=background,
            stop=stop,
            on_ready=ready.set_result,
        )
    )
    waiting: list[Awaitable[object]] = [task, ready]
    await asyncio.wait(
        [asyncio.ensure_future(each) for each in waiting],
        timeout=START_SECONDS,
        return_when=asyncio.FIRST_COMPLETED,
    )
    try:
        if task.done():
            task.result()
        yield f"127.0.0.1:{ready.result()}"
    finally:
        stop.set()
        await task


@asynccontextmanager
async def calling(
    address: str, role: Role = Role.PROJECT, *, project: str = "acme", subject: str = "ada"
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that calls with a token of a role; `project` is for role project only."""
    token = mint(
        SIGNING_KEY,
        subject=subject,
        role=role,
        project=project if role is Role.PROJECT else None,
        now=datetime.now(UTC),
    )
    channel = connect(address, token=lambda: token)
    try:
        yield channel
    finally:
        await channel.close()
