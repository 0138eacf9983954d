"""Reads strangers' dataset files in processes of their own, and tells their end from their answer.

A reader that is killed, hangs or runs out of memory takes nothing with it: the next file gets a
fresh one, and the hub goes on answering. Readers are used again, because starting one takes longer
than reading most files.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from chassis import telemetry
from corpus.formats import Inspection
from hub.child import WALL_REMEDY, Answer, Job
from lexicon.faults import Fault, FaultCode

# Reading is work for one core; more at once would only take turns on it.
PARALLEL: Final = 2
# What a Python process needs to start; secrets are not among it.
PASSED_ON: Final = ("LANG", "LC_ALL", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
# One arena of plain memory: what is asked for is what counts against the room.
_OWN_ENVIRONMENT: Final = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Rows of an answer have a bound of their own, and every character may take six as JSON.
MAX_ANSWER_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 16
# How a process ends that a file has broken; any other end is not the file's doing.
_BROKEN: Final = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
)

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the reading of one file may take, beside what a reader takes without any.

    Attributes:
        memory_bytes: of a file of no size; a byte of it may take `bytes_a_byte` more. The rows of
            the largest lines that are accepted take some 400 MiB as Python objects.
        memory_bytes_max: of any file.
        cpu_seconds: of a file of no size; each MiB may take `cpu_seconds_a_mib` more. A MiB of
            well-packed Parquet holds some 34,000 rows, which take 0.6 s of the core that this was
            measured on.
        cpu_seconds_max: of any file; 20 million rows, the most that are read, take some 340 s.
        wall_factor: how much longer it may take on a busy machine.
    """

    memory_bytes: int = 512 << 20
    bytes_a_byte: int = 8
    memory_bytes_max: int = 2 << 30
    cpu_seconds: int = 30
    cpu_seconds_a_mib: int = 10
    cpu_seconds_max: int = 1800
    wall_factor: float = 4.0

    def job(self, path: Path, *, file_name: str = "", row_count: int = 0) -> Job:
        """What a reader is told of a file."""
        size_bytes = path.stat().st_size
        room = self.memory_bytes + self.bytes_a_byte * size_bytes
        cpu_seconds = self.cpu_seconds + self.cpu_seconds_a_mib * (size_bytes >> 20)
        cpu_seconds = min(cpu_seconds, self.cpu_seconds_max)
        return Job(
            path=str(path),
            file_name=file_name,
            row_count=row_count,
            memory_bytes=min(room, self.memory_bytes_max),
            cpu_seconds=cpu_seconds,
            wall_seconds=cpu_seconds * self.wall_factor,
        )


class Readers:
    """Processes that read dataset files; at most two at a time."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._gate = asyncio.Semaphore(PARALLEL)
        self._idle: list[_Reader] = []
        self._busy: set[_Reader] = set()

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that there are now."""
        return [reader.process.pid for reader in (*self._idle, *self._busy)]

    def start(self) -> None:
        """Begins one ahead of the first file; it loads its libraries meanwhile."""
        if sys.platform != "linux":
            log.warning("memory of dataset readers is not bounded on this system")
        self._idle.append(_Reader())

    def close(self) -> None:
        """Ends all of them, also those at work."""
        for reader in (*self._idle, *self._busy):
            reader.kill()
        self._idle.clear()

    async def inspect(self, path: Path, *, file_name: str) -> Inspection:
        """What a file holds.

        Raises:
            Fault: as `corpus.formats.inspect_file`; DATASET_FILE_INVALID also when reading it takes
                too much time or memory; DEP_SERVICE_UNAVAILABLE when the reader was killed.
        """
        answer = await self._ask(self._limits.job(path, file_name=file_name))
        assert answer.inspection is not None, "an inspection or a fault"
        return answer.inspection

    async def preview(self, path: Path, *, row_count: int) -> list[str]:
        """The first rows of a file as JSON.

        Raises:
            Fault: as `inspect`.
        """
        return (await self._ask(self._limits.job(path, row_count=row_count))).rows

    async def _ask(self, job: Job) -> Answer:
        async with self._gate:
            reader = await self._take()
            self._busy.add(reader)
            try:
                # In a thread: uvloop now and then closes a young child's standard input too soon.
                answer = await asyncio.to_thread(reader.ask, job)
            except BaseException:
                # Also when nobody waits any more; the thread then ends with its reader.
                reader.kill()
                raise
            finally:
                self._busy.discard(reader)
            if answer.is_last:
                reader.kill()
            else:
                self._idle.append(reader)
        if answer.unexpected:
            log.error("dataset reader failed", where=answer.unexpected)
            raise Fault(FaultCode.INTERNAL_UNEXPECTED, kind=answer.unexpected.partition(" ")[0])
        if answer.code:
            raise Fault(
                FaultCode(answer.code), answer.message, remedy=answer.remedy, **answer.metadata
            )
        return answer

    async def _take(self) -> "_Reader":
        while self._idle:
            reader = self._idle.pop()
            if reader.process.poll() is None:
                return reader
            reader.kill()
        return await asyncio.to_thread(_Reader)


class _Reader:
    """One process; who holds it is its only caller."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # It inherits no descriptor but these two: no socket, no log.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hub.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | _OWN_ENVIRONMENT,
            # What is typed at the hub's terminal is not for it.
            start_new_session=True,
        )

    def ask(self, job: Job) -> Answer:
        """Gives a job and waits for the answer.

        Raises:
            Fault: DATASET_FILE_INVALID when the file was the end of it, DEP_SERVICE_UNAVAILABLE
                when something else was.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode(job) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise _killed() from None
        line = self._line(time.monotonic() + job.wall_seconds)
        if line is None:
            log.warning("dataset reader hung", seconds=job.wall_seconds)
            raise _late(job)
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Answer)
        raise _ended_by(self.process.wait(), job)

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def _line(self, deadline: float) -> bytes | None:
        """The next line; without its end when the process has ended, None when time was over."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        parts: list[bytes] = []
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        size_bytes = 0
        while size_bytes <= MAX_ANSWER_BYTES:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            part = os.read(descriptor, _READ_BYTES)
            parts.append(part)
            size_bytes += len(part)
            if not part or part.endswith(b"\n"):
                return b"".join(parts)
        return None


def _ended_by(returncode: int, job: Job) -> Fault:
    log.warning("dataset reader died", returncode=returncode, path=job.path)
    if returncode == -signal.SIGXCPU:
        what = f"reading it takes more than {job.cpu_seconds} s"
    elif -returncode in _BROKEN:
        what = "its reader breaks on it"
    else:
        return _late(job) if returncode == -signal.SIGALRM else _killed()
    return Fault(
        FaultCode.DATASET_FILE_INVALID,
        f"The dataset file is not usable: {what}",
        remedy=WALL_REMEDY,
    )


def _killed() -> Fault:
    return Fault(
        FaultCode.DEP_SERVICE_UNAVAILABLE,
        "The reading of the dataset file was interrupted; commit the upload again.",
    )


def _late(job: Job) -> Fault:
    return Fault(
        FaultCode.DEP_SERVICE_UNAVAILABLE,
        f"The reading of the dataset file did not end within {job.wall_seconds:g} s.",
        wall_seconds=job.wall_seconds,
    )
