"""The working child as the agent sees it: started ahead of need, and ended within a second."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from chassis import telemetry
from exporter import wire
from exporter.pipe import (
    LINE_BYTES_MAX,
    BaseNeeded,
    BaseNeededError,
    Evicted,
    Export,
    Exported,
    Failed,
    FromChild,
    Progress,
    Ready,
    decode_from_child,
    encode,
)
from lexicon.faults import Fault, FaultCode, Stage
from objects import cache

log = telemetry.logger(__name__)

# The self-test converts a tiny model the first time, and a cold disk loads libraries for a minute.
READY_SECONDS_MAX: Final = 300.0
# The kernel ends a killed process at once; what is waited for is its memory being given back.
END_SECONDS_MAX: Final = 10.0
# Of what a dead child printed, the end says why it died.
LOG_TAIL_BYTES: Final = 4000
# What the child may see of the agent's environment: no token, no address, nothing of the platform.
PASSED_ON: Final = (
    "PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
    "SYSTEMROOT",
)  # fmt: skip
OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    # Matrix products of a rank are small; threads of their own would only get in the way.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Weights are merged between two operations of llama.cpp, whose threads must not spin meanwhile.
    "OMP_WAIT_POLICY": "passive",
}


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment: harmless names only, and no network for libraries."""
    return {name: environment[name] for name in PASSED_ON if name in environment} | OFFLINE


class Child:
    """One child process and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log_path: Path,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log_path = log_path
        self._log_start = log_path.stat().st_size

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.returncode is None

    @property
    def process_id(self) -> int:
        """The process, whose id is also that of its group."""
        return self._process.pid

    @classmethod
    async def start(
        cls, *, log_path: Path, cache: Path, vendor: Path, thread_count: int, cache_bytes: int = 0
    ) -> Self:
        """Start a child; it loads its libraries while nobody waits for it.

        Args:
            cache: folder `gguf` of the cache of models.
            cache_bytes: bound of that whole cache, 0 for half of its volume.
        """
        ours, theirs = socket.socketpair()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as output, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "exporter.engine", str(theirs.fileno()),
                "--cache", str(cache), "--vendor", str(vendor), "--threads", str(thread_count),
                "--cache-bytes", str(cache_bytes),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=(theirs.fileno(),), env=child_environment(os.environ),
                start_new_session=True,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        return cls(process, reader, writer, log_path)

    async def ready(self) -> Ready:
        """Wait until the self-test has passed.

        Raises:
            Fault: RUNTIME_GGUF_EXPORT_FAILED or what the self-test found.
        """
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                match await self._receive():
                    case Ready() as ready:
                        return ready
                    case Failed() as failed:
                        raise wire.fault_of(failed)
                    case other:
                        raise _broken(f"The export process began with {type(other).__name__}.")
        except TimeoutError as error:
            # Half ready it must not pass for one that takes jobs.
            await self.kill()
            raise _broken(
                f"The export process was not ready within {READY_SECONDS_MAX:.0f} s."
            ) from error

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
        with suppress(ConnectionError):
            self._writer.write(encode(job) + b"\n")
            await self._writer.drain()
        while True:
            match await self._receive():
                case Progress() as progress:
                    on_progress(progress)
                case Evicted() as gone:
                    on_evicted(cache.Evicted(name=gone.name, size_bytes=gone.size_bytes))
                case Exported() as exported:
                    return exported
                case BaseNeeded():
                    raise BaseNeededError
                case Failed() as failed:
                    raise wire.fault_of(failed)
                case Ready():
                    raise _broken("The export process started twice.")

    async def kill(self) -> None:
        """End the child and all it started, at once."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            async with asyncio.timeout(END_SECONDS_MAX):
                await self._process.wait()
        self._writer.close()

    async def _receive(self) -> FromChild:
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError) as error:
            log.warning("child_channel_broke", cause=str(error))
            line = b""
        if line:
            return decode_from_child.decode(line)
        async with asyncio.timeout(END_SECONDS_MAX):
            code = await self._process.wait()
        tail = self._log_tail()
        log.error("child_ended", exit_code=code, log_tail=tail)
        raise _broken(
            f"The export process ended unexpectedly (exit code {code}).",
            exit_code=code,
            output=tail,
        )

    def _log_tail(self) -> str:
        """What this child printed last; both of its streams go into the log."""
        with suppress(OSError), self._log_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
        return ""


def _broken(message: str, **metadata: Any) -> Fault:
    return Fault(FaultCode.RUNTIME_GGUF_EXPORT_FAILED, message, stage=Stage.EXPORTING, **metadata)
