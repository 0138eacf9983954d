"""The gateway's HTTP door on a free port, over a line on which time passes with the bytes.

The door reads its clock at each request, the signer that stands for the hub reads the same one; a
test steps it, and may set the hub's wrong. Nobody waits for anything.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from obstore.store import LocalStore
from starlette.types import Receive, Scope, Send

from gateway.http import application
from hub.links import Links
from objects.signing import UrlSigner
from objects.store import ObjectStore

PIECE_BYTES = 1 << 20
LIMIT_BYTES = 1 << 30
START_SECONDS = 10.0
LIFETIME = timedelta(minutes=15)


@dataclass(slots=True)
class Clock:
    """A clock that a test steps."""

    now: datetime = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    def step(self, span: timedelta) -> None:
        self.now += span


@dataclass(slots=True)
class Line:
    """How slow the line is, and when it breaks.

    Attributes:
        a_piece: time that passes with each MiB.
        cut_after: MiB after which an answer breaks off; 0 for never.
        asked: key and first byte of each answer that sent bytes.
    """

    a_piece: timedelta = timedelta()
    cut_after: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)


class SlowStore(ObjectStore):
    """The real store, whose bytes take their time."""

    def __init__(self, folder: Path, clock: Clock, line: Line) -> None:
        super().__init__(LocalStore(folder, mkdir=True), folder=folder)
        self._clock = clock
        self._line = line

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        self._line.asked.append((key, start))
        return self._slowly(await super().get(key, start=start, end=end))

    async def _slowly(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        count = 0
        async for piece in pieces:
            for start in range(0, len(piece), PIECE_BYTES):
                if self._line.cut_after and count == self._line.cut_after:
                    raise _LineBroken
                yield piece[start : start + PIECE_BYTES]
                self._clock.step(self._line.a_piece)
                count += 1


class _LineBroken(BaseException):
    """Nobody at the door may answer it: the connection is gone."""


@dataclass(slots=True, kw_only=True)
class Door:
    """What a test needs of the door: where its time stands, what lies behind it, who signs.

    Attributes:
        hub_behind: how far the signer's clock is behind the door's.
    """

    clock: Clock
    line: Line
    store: SlowStore
    signer: UrlSigner
    hub_behind: timedelta = timedelta()

    async def add(self, key: str, data: bytes) -> None:
        """Stores an object."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        await self.store.put(key, once(), size_limit=LIMIT_BYTES)

    def sign(self, uri: str) -> str:
        """A URL as the hub signs it."""
        links = Links(
            self.signer, lifetime=LIFETIME, clock=lambda: self.clock.now - self.hub_behind
        )
        return links.get(uri.removeprefix("object://")).url


@asynccontextmanager
async def serving_door(folder: Path) -> AsyncIterator[Door]:
    """Serves objects until the block ends."""
    clock, line = Clock(), Line()
    store = SlowStore(folder, clock, line)
    keys = ["key-of-signed-urls-in-tests"]
    app = application(
        signer=UrlSigner(keys, "http://127.0.0.1"),
        store=store,
        hosts=frozenset({"127.0.0.1"}),
        object_bytes_max=LIMIT_BYTES,
        clock=lambda: clock.now,
    )

    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except* _LineBroken:
            # uvicorn closes a connection whose answer was left in the middle.
            pass

    config = uvicorn.Config(
        breaking, host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(START_SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    signer = UrlSigner(keys, f"http://127.0.0.1:{port}")
    try:
        yield Door(clock=clock, line=line, store=store, signer=signer)
    finally:
        server.should_exit = True
        await task
