"""Processes as their parent sees them, which say what they were told to say, and end as told."""

import os
import subprocess
from typing import IO, Any

import msgspec

from chassis.child.process import Pipes, Process, Program

BYTES_MAX = 1 << 16


class FakeHandle:
    """A process that is there until it is let go, whatever signal it is sent."""

    # Beyond what the kernel gives: no signal of these tests reaches anybody.
    pid = 1 << 30

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._channel: list[IO[bytes]] = []

    def listen_at(self, *channel: IO[bytes]) -> None:
        """Keep the child's ends of the channel open."""
        self._channel.extend(channel)

    def close(self) -> None:
        """Close the channel, and stay."""
        for pipe in self._channel:
            pipe.close()

    def poll(self) -> int | None:
        return self.exit_code

    def wait(self, timeout: float | None = None) -> int:
        if self.exit_code is None:
            raise subprocess.TimeoutExpired("", timeout or 0.0)
        return self.exit_code

    def let_go(self, exit_code: int = -9) -> None:
        self.exit_code = exit_code


def a_process(
    decoder: Any, *said: Any, handle: FakeHandle | None = None
) -> tuple[Process[Any], FakeHandle]:
    """One that has said these messages and listens; no other is heard of it."""
    handle = handle or FakeHandle()
    (nobody, outgoing), (incoming, child) = os.pipe(), os.pipe()
    os.write(child, b"".join(msgspec.json.encode(message) + b"\n" for message in said))
    pipes = Pipes(outgoing=os.fdopen(outgoing, "wb", 0), incoming=os.fdopen(incoming, "rb", 0))
    program = Program(module="fake", environment={}, message_bytes_max=BYTES_MAX)
    process = Process(program, handle, pipes, decoder, end_seconds=0.01)
    handle.listen_at(os.fdopen(nobody, "rb", 0), os.fdopen(child, "wb", 0))
    return process, handle
