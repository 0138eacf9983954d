"""Processes as the trainer's agent sees them, which say what they were told to say."""

import asyncio
from typing import Any

from trainer.pipe import encode


class Line:
    """A process that is there, and says what it was told to say."""

    returncode = None

    def __init__(self, *said: Any) -> None:
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(b"".join(map(encode, said)))
        self.process = self.writer = self

    def write(self, _: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass
