"""`python -m exporter.engine FD`: the working child. One job after another over the socket FD.

It dies with its agent: when the socket closes, the whole process group ends, converter included.
"""

import argparse
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from exporter.engine import selftest
from exporter.engine.disk import PARTIAL, forget_leftovers
from exporter.engine.export import Engine, export
from exporter.engine.kernel.kernel import Kernel
from exporter.pipe import (
    BaseNeeded,
    BaseNeededError,
    Evicted,
    Export,
    Failed,
    Progress,
    Ready,
    decode_for_child,
    encode,
)
from lexicon.faults import Fault, FaultCode
from objects import cache

PROGRESS_SECONDS: Final = 0.25


class Channel:
    """The socket to the agent: jobs in, messages out."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._jobs: queue.Queue[Export] = queue.Queue()
        self._progress_time = 0.0
        threading.Thread(target=self._listen, daemon=True).start()

    def next_job(self) -> Export:
        return self._jobs.get()

    def send(self, message: msgspec.Struct) -> None:
        self._socket.sendall(encode(message) + b"\n")

    def progress(self, step: str, percent: float) -> None:
        """Tells how far the job is, a few times a second at the most."""
        now = time.monotonic()
        if percent == 0.0 or now - self._progress_time >= PROGRESS_SECONDS:
            self._progress_time = now
            self.send(Progress(step=step, percent=percent))

    def evicted(self, gone: cache.Evicted) -> None:
        """Tells what went from the cache; the agent logs and counts it."""
        self.send(Evicted(name=gone.name, size_bytes=gone.size_bytes))

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                self._jobs.put(decode_for_child(line))
        os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Check the parts, then work until the agent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("descriptor", type=int)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vendor", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache-bytes", type=int, default=0)
    arguments = parser.parse_args()
    channel = Channel(arguments.descriptor)
    llama_version = version("llama-cpp-python")
    try:
        selftest.check_parts(arguments.vendor)
        selftest.check_conversion(arguments.cache, arguments.vendor, llama_version=llama_version)
    except Fault as fault:
        channel.send(_failed(fault))
        return 1
    # A killed conversion left its work under a name that only the same base would clean up.
    forget_leftovers(arguments.cache, f"*{PARTIAL}/")
    kernel = Kernel.prepare(arguments.cache / "kernels")
    engine = Engine(
        cache=arguments.cache,
        vendor=arguments.vendor,
        thread_count=arguments.threads,
        kernel=kernel,
        llama_version=llama_version,
        cache_bytes=arguments.cache_bytes,
    )
    fast_types = tuple(kind.name for kind in sorted(kernel.types))
    channel.send(Ready(llama_version=llama_version, fast_types=fast_types))
    while True:
        _work(engine, channel, channel.next_job())


def _work(engine: Engine, channel: Channel, job: Export) -> None:
    try:
        channel.send(export(engine, job, channel.progress, channel.evicted))
    except BaseNeededError:
        channel.send(BaseNeeded())
    except Fault as fault:
        channel.send(_failed(fault))
    except Exception as error:  # noqa: BLE001 (the edge of the child: whatever it was, the agent must hear)
        traceback.print_exc()
        kind = type(error).__name__
        channel.send(
            _failed(Fault(FaultCode.INTERNAL_UNEXPECTED, f"The export failed: {kind}.", kind=kind))
        )


def _failed(fault: Fault) -> Failed:
    return Failed(
        code=fault.code,
        message=fault.message,
        metadata={key: str(value) for key, value in fault.metadata.items()},
        remedy=fault.remedy,
    )


if __name__ == "__main__":
    sys.exit(main())
