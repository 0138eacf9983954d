"""The child's side: messages in and out by two pipes, and an end with the parent's end.

Libraries may print to standard output, so messages have pipes of their own; a child gets their
descriptors in its first argument. A message is one line of JSON without line breaks; an empty line
is a pulse, which only shows that the process works.
"""

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

M = TypeVar("M")

PULSE_SECONDS: Final = 10.0


class Channel(Generic[M]):
    """Sends messages at once; a thread of its own receives, so that work never waits for it.

    When the parent has ended, the process ends with all that it started: its result would be lost,
    and the next agent needs the device and locks that it holds.
    """

    def __init__(
        self, descriptors: str, decoder: "msgspec.json.Decoder[M]", take: Callable[[M], object]
    ) -> None:
        """Begin to listen.

        Args:
            descriptors: the first argument of the process.
            take: called for each message, in the thread that listens.
        """
        incoming, outgoing = map(int, descriptors.split(","))
        for descriptor in (incoming, outgoing):
            # A tool that is started from here must not keep the channel open.
            os.set_inheritable(descriptor, False)
        self._incoming = os.fdopen(incoming, "rb")
        self._outgoing = os.fdopen(outgoing, "wb")
        self._sending = threading.Lock()
        self._decoder, self._take = decoder, take
        threading.Thread(target=self._listen, name="parent-channel", daemon=True).start()

    def send(self, message: object) -> None:
        """Send one message to the parent."""
        self._write(msgspec.json.encode(message) + b"\n")

    def keep_pulse(self, seconds: float = PULSE_SECONDS) -> None:
        """From now on send a pulse at this interval; a stopped or hanging process sends none."""

        def beat() -> None:
            while True:
                time.sleep(seconds)
                self._write(b"\n")

        threading.Thread(target=beat, name="pulse", daemon=True).start()

    def _write(self, line: bytes) -> None:
        with self._sending:
            self._outgoing.write(line)
            self._outgoing.flush()

    def _listen(self) -> None:
        try:
            for line in self._incoming:
                self._take(self._decoder.decode(line))
        except msgspec.MsgspecError:
            # The two sides are not of the same version.
            traceback.print_exc()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def limit(kind: int, most: int | None) -> None:
    """Bound what this process may take of a resource from here on; None lifts the bound.

    Args:
        kind: one of `resource.RLIMIT_…`. Only Linux knows a bound of the address space.
    """
    if kind == resource.RLIMIT_AS and sys.platform != "linux":
        return
    _, hard = resource.getrlimit(kind)
    wanted = resource.RLIM_INFINITY if most is None else most
    if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
        wanted = hard
    resource.setrlimit(kind, (wanted, hard))
