"""A real server of the chassis on a free port, for as long as a test needs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from chassis.server import run_server

KEY = "test-signing-key-" + 32 * "k"
START_SECONDS = 10.0


@contextlib.asynccontextmanager
async def serving(
    register: Callable[[Any], Sequence[str]], *, signing_key: str | None = KEY, **options: Any
) -> AsyncIterator[int]:
    """Run `run_server` on 127.0.0.1 and give its port."""
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(
        run_server(
            service="test",
            listen="127.0.0.1:0",
            tls=None,
            signing_key=signing_key,
            register=register,
            stop=stop,
            on_ready=port.set_result,
            **options,
        )
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not port.done():
                if server.done():
                    server.result()
                await asyncio.sleep(0)
        yield await port
    finally:
        stop.set()
        async with asyncio.timeout(START_SECONDS):
            await server
