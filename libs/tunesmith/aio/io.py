"""The part that differs with asyncio: sleep, connect, read. `client/io.py` has the same names."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncIterator
from pathlib import Path

from grpc import aio

from tunesmith import transfer
from tunesmith.credentials import Credentials
from tunesmith.transport import channel_credentials, channel_options

__all__ = ["chunks", "open_channel", "sleep"]


def open_channel(credentials: Credentials) -> aio.Channel:
    """A channel to the gateway, with TLS unless the gateway is on this machine."""
    secure, options = channel_credentials(credentials), channel_options()
    if secure is None:
        return aio.insecure_channel(credentials.target, options=options)
    return aio.secure_channel(credentials.target, secure, options=options)


async def chunks(path: Path, on_bytes: transfer.OnBytes | None) -> AsyncIterator[bytes]:
    """The bytes of a file in pieces, as an async HTTP client takes them."""
    for chunk in transfer.chunks(path, on_bytes):
        yield chunk
