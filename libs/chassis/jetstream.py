"""The connection to NATS JetStream that the relay and the consumer share."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from chassis.links import nats_tls, refuse_open_nats
from lexicon.faults import Fault, FaultCode

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 5.0
PING_SECONDS = 5
# Closed here: the bypass of route authentication, the crash before authentication and the loss of
# acknowledged writes (see the server's advisories of 2026).
VERSION_FLOORS = {(2, 11): (2, 11, 16), (2, 12): (2, 12, 7)}
VERSION_FLOOR_NEWEST = (2, 14, 0)

# Exceptions of a failing server; all others are bugs of ours.
TROUBLE: tuple[type[Exception], ...] = (
    nats.errors.Error,
    nats.js.errors.Error,
    OSError,
    TimeoutError,
    # The client's parser meets a connection that was cut in mid-message.
    EOFError,
)


async def connect(url: str, *, name: str, on_closed: Callable[[], None]) -> Client:
    """A connection that ends at the first error instead of reconnecting silently.

    After an interruption the stream may be a new one and has to be checked again; so the loop
    around this function opens the next connection.

    Args:
        url: `nats://user:password@host:port`, `tls://…` beyond this machine; never logged.
        name: shown by the server.
        on_closed: called once when the connection has ended.
    Raises:
        Fault: CONFIG_INVALID for a server that is too old, RUNTIME_AUTH_NOT_ENFORCED for one beyond
            this machine without TLS.
    """
    refuse_open_nats(url)
    parts = urlsplit(url)

    async def closed() -> None:
        on_closed()

    async def silent(_error: Exception) -> None:
        """Ignore the client's callback: calls raise the same errors, which it would print again."""

    client = await nats.connect(
        f"{parts.scheme}://{parts.hostname}:{parts.port or 4222}",
        user=parts.username,
        password=parts.password,
        tls=nats_tls(url),
        name=f"tunesmith-{name}",
        connect_timeout=int(CONNECT_SECONDS),
        ping_interval=PING_SECONDS,
        max_outstanding_pings=2,
        allow_reconnect=False,
        max_reconnect_attempts=0,
        closed_cb=closed,
        disconnected_cb=closed,
        error_cb=silent,
    )
    try:
        check_version(str(client.connected_server_version))
    except Fault:
        await close(client)
        raise
    return client


def check_version(text: str) -> None:
    """Refuse a server with known vulnerabilities.

    Raises:
        Fault: CONFIG_INVALID.
    """
    numbers = [int(number) for number in re.findall(r"\d+", text)[:3]]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    if (major, minor, patch) < VERSION_FLOORS.get((major, minor), VERSION_FLOOR_NEWEST):
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"nats-server {major}.{minor}.{patch} has known security holes.",
            remedy="Use 2.11.16, 2.12.7, 2.14.0 or newer.",
        )


async def close(client: Client) -> None:
    """End a connection, also one that is broken already."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.close()
    except TROUBLE:
        return


def context(client: Client) -> JetStreamContext:
    """The JetStream side of a connection."""
    return client.jetstream(timeout=REQUEST_SECONDS)


async def stream_info(stream: JetStreamContext, name: str) -> StreamInfo | None:
    """What the server says about a stream; None when there is none."""
    try:
        return await stream.stream_info(name)
    except nats.js.errors.NotFoundError:
        return None


def created_of(info: StreamInfo) -> str:
    """When the stream was made: the same text as long as it is the same stream."""
    created: Any = info.created
    assert created is not None
    return created if isinstance(created, str) else str(created.isoformat())
