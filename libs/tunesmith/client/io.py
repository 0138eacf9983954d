"""The part that differs without asyncio: sleep, connect, read. `aio/io.py` has the same names."""

from __future__ import annotations

from time import sleep

import grpc

from tunesmith.credentials import Credentials
from tunesmith.transfer import chunks
from tunesmith.transport import channel_credentials, channel_options

__all__ = ["chunks", "open_channel", "sleep"]


def open_channel(credentials: Credentials) -> grpc.Channel:
    """A channel to the gateway, with TLS unless the gateway is on this machine."""
    secure, options = channel_credentials(credentials), channel_options()
    if secure is None:
        return grpc.insecure_channel(credentials.target, options=options)
    return grpc.secure_channel(credentials.target, secure, options=options)
