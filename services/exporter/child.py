"""The working child as the agent sees it: started ahead of need, and ended within a second."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from chassis import telemetry
from chassis.child.process import SILENCE_SECONDS_MAX, End, Process, Program, environment_of
from exporter import wire
from exporter.pipe import (
    MESSAGE_BYTES_MAX,
    BaseNeeded,
    BaseNeededError,
    Evicted,
    Export,
    Exported,
    Failed,
    FromChild,
    Progress,
    Ready,
    from_child,
)
from lexicon.faults import Fault, FaultCode, Stage
from objects import cache

log = telemetry.logger(__name__)

MODULE: Final = "exporter.engine"
# The self-test converts a tiny model the first time, and a cold disk loads libraries for a minute.
READY_SECONDS_MAX: Final = 300.0
# What the child may see of the agent's environment beside what any program needs.
PASSED_ON: Final = ("HOME", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")
THREADS: Final = {
    # Matrix products of a rank are small; threads of their own would only get in the way.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Weights are merged between two operations of llama.cpp, whose threads must not spin meanwhile.
    "OMP_WAIT_POLICY": "passive",
}


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment: harmless names only, and no network for libraries."""
    return environment_of(environment, also=PASSED_ON, own=THREADS)


class Child:
    """One child process and the channel to it."""

    def __init__(self, process: Process[FromChild], *, silence_seconds: float) -> None:
        self._process = process
        self._silence_seconds = silence_seconds

    @property
    def alive(self) -> bool:
        """Whether the process runs and may be given work; one that was ended gets none."""
        return self._process.alive and not self._process.is_stuck

    @property
    def process_id(self) -> int:
        """The process, whose id is also that of its group."""
        return self._process.pid

    @classmethod
    async def start(
        cls,
        *,
        log_path: Path,
        cache: Path,
        vendor: Path,
        thread_count: int,
        cache_bytes: int = 0,
        module: str = MODULE,
        silence_seconds: float = SILENCE_SECONDS_MAX,
    ) -> Self:
        """Start a child; it loads its libraries while nobody waits for it.

        Args:
            cache: folder `gguf` of the cache of models.
            cache_bytes: bound of that whole cache, 0 for half of its volume.
            silence_seconds: how long one that works may give no sign of life.
        """
        program = Program(
            module=module,
            arguments=(
                "--cache", str(cache), "--vendor", str(vendor), "--threads", str(thread_count),
                "--cache-bytes", str(cache_bytes),
            ),
            environment=child_environment(os.environ),
            message_bytes_max=MESSAGE_BYTES_MAX,
            log_path=log_path,
        )  # fmt: skip
        return cls(Process.start(program, from_child), silence_seconds=silence_seconds)

    async def ready(self) -> Ready:
        """Wait until the self-test has passed.

        Raises:
            Fault: RUNTIME_GGUF_EXPORT_FAILED or what the self-test found.
        """
        match await self._receive(READY_SECONDS_MAX):
            case Ready() as ready:
                return ready
            case Failed() as failed:
                raise wire.fault_of(failed)
            case other:
                raise _broken(f"The export process began with {type(other).__name__}.")

    async def export(
        self,
        job: Export,
        on_progress: Callable[[Progress], None],
        on_evicted: Callable[[cache.Evicted], None] = lambda _evicted: None,
    ) -> Exported:
        """Give the child a job and wait for its end.

        Raises:
            BaseNeededError: the job came without files of its base, and there is no conversion.
            Fault: what the export met; RUNTIME_GGUF_EXPORT_FAILED when the child died.
        """
        await self._process.send(job)
        while True:
            match await self._receive(self._silence_seconds):
                case Progress() as progress:
                    on_progress(progress)
                case Evicted() as evicted:
                    on_evicted(cache.Evicted(name=evicted.name, size_bytes=evicted.size_bytes))
                case Exported() as exported:
                    return exported
                case BaseNeeded():
                    raise BaseNeededError
                case Failed() as failed:
                    raise wire.fault_of(failed)
                case Ready():
                    raise _broken("The export process started twice.")

    async def kill(self) -> None:
        """End the child and all it started, at once; another takes its place if it cannot be."""
        await self._process.end()

    async def _receive(self, seconds: float) -> FromChild:
        message = await self._process.receive(seconds=seconds)
        if isinstance(message, End):
            raise _broken(f"The export process {message.words}.", **message.metadata)
        return message


def _broken(message: str, **metadata: Any) -> Fault:
    return Fault(FaultCode.RUNTIME_GGUF_EXPORT_FAILED, message, stage=Stage.EXPORTING, **metadata)
