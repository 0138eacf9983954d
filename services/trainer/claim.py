"""The claim of a node's training processes on its device, which outlives the agent.

Every training process inherits the open file whose lock is the claim. The kernel ends it with the
last process that has it open: an agent that was started again sees whether one of its predecessor's
processes is still there, hanging in a driver, and starts no other beside it.
"""

import asyncio
import fcntl
import time
from pathlib import Path
from typing import BinaryIO

LOCK_NAME = "device.lock"
LOOK_SECONDS = 0.2


class Claim:
    """The claim, taken once by an agent and kept for its life."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._file: BinaryIO | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a training process inherits."""
        return (self._file.fileno(),) if self._file else ()

    def take(self) -> bool:
        """Whether the claim is held, now or already."""
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    async def wait(self, *, seconds: float) -> bool:
        """`take` again and again; a process whose agent was killed needs a moment to end."""
        deadline = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    def drop(self) -> None:
        """Give it back, as far as no training process has it."""
        if self._file is not None:
            self._file.close()
            self._file = None
