"""`python -m exporter.engine CHANNEL`: the working child. It does one job after another.

It ends with its agent, and so does the converter that it may have started.
"""

import argparse
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from chassis.child import channel
from exporter.engine import selftest
from exporter.engine.base import cache_key, cached_base
from exporter.engine.disk import PARTIAL, forget_leftovers
from exporter.engine.export import Engine, export
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.weights import GgufFile, read_json
from exporter.pipe import (
    OF_BASE,
    BaseNeeded,
    BaseNeededError,
    Evicted,
    Export,
    Failed,
    Progress,
    Ready,
    to_child,
)
from lexicon.faults import Fault, FaultCode
from objects import cache

PROGRESS_SECONDS: Final = 0.25


class ExportChannel:
    """The channel to the agent: jobs in, messages out."""

    def __init__(self, descriptors: str) -> None:
        jobs: SimpleQueue[Export] = SimpleQueue()
        self._progress_time = 0.0
        # Of the job under way; empty as long as nothing but its adapter was looked at.
        self.step = ""
        self._channel = channel.Channel(descriptors, to_child, jobs.put)
        self.next_job = jobs.get
        self.send = self._channel.send
        self.keep_pulse = self._channel.keep_pulse

    def progress(self, step: str, percent: float) -> None:
        """Reports how far the job is, a few times a second at the most."""
        self.step = step
        now = time.monotonic()
        if percent == 0.0 or now - self._progress_time >= PROGRESS_SECONDS:
            self._progress_time = now
            self.send(Progress(step=step, percent=percent))

    def evicted(self, evicted: cache.Evicted) -> None:
        """Reports what was evicted from the cache; the agent logs and counts it."""
        self.send(Evicted(name=evicted.name, size_bytes=evicted.size_bytes))


def main() -> int:
    """Check the parts, then work until the agent has ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("channel")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vendor", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache-bytes", type=int, default=0)
    arguments = parser.parse_args()
    agent = ExportChannel(arguments.channel)
    llama_version = version("llama-cpp-python")
    try:
        selftest.check_parts(arguments.vendor)
        selftest.check_conversion(arguments.cache, arguments.vendor, llama_version=llama_version)
    except Fault as fault:
        agent.send(_failed(fault))
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
    agent.send(Ready(llama_version=llama_version, fast_types=fast_types))
    agent.keep_pulse()
    while True:
        _work(engine, agent, agent.next_job())


def _work(engine: Engine, agent: ExportChannel, job: Export) -> None:
    agent.step = ""
    try:
        agent.send(export(engine, job, agent.progress, agent.evicted))
    except BaseNeededError:
        agent.send(BaseNeeded())
    except Fault as fault:
        if fault.code is FaultCode.MODEL_WEIGHTS_INVALID and _may_be_of_base(
            engine, job, agent.step
        ):
            fault.metadata["of"] = OF_BASE
        agent.send(_failed(fault))
    except MemoryError:
        traceback.print_exc()
        text = "The export took more memory than the exporter has."
        agent.send(_failed(Fault(FaultCode.RUNTIME_GGUF_EXPORT_FAILED, text)))
    except Exception as error:  # noqa: BLE001 (the edge of the child: whatever it was, the agent must hear)
        traceback.print_exc()
        kind = type(error).__name__
        agent.send(
            _failed(Fault(FaultCode.INTERNAL_UNEXPECTED, f"The export failed: {kind}.", kind=kind))
        )


def _may_be_of_base(engine: Engine, job: Export, step: str) -> bool:
    """Whether weights or settings that are invalid may be those of the base and not the adapter's.

    A base that has no conversion after its step failed in it. Later its vocabulary and the places
    of its tensors are read, which can be read once more, and its numbers, in the merge.
    """
    if not step:
        return False
    key = cache_key(job.base_key, llama_version=engine.llama_version)
    base = cached_base(engine.cache, key)
    if base is None or step == "merge":
        return True
    try:
        with GgufFile(base.gguf):
            base.placements()
        for path in base.folder.glob("*.json"):
            read_json(path)
    except Fault:
        return True
    return False


def _failed(fault: Fault) -> Failed:
    return Failed(
        code=fault.code,
        message=fault.message,
        metadata={key: str(value) for key, value in fault.metadata.items()},
        remedy=fault.remedy,
    )


if __name__ == "__main__":
    sys.exit(main())
