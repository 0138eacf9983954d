"""Reads users' dataset files in child processes; a crash is distinct from an answer.

A reader that is killed, hangs or runs out of memory affects nothing else: the next file gets a
fresh one, and the hub stays available. Readers are reused, because starting one takes longer than
reading most files.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from chassis import telemetry
from chassis.child.process import Cause, End, Process, Program, environment_of
from corpus.formats import Inspection
from hub.child import WALL_REMEDY, Job, ReadAnswer
from lexicon.faults import Fault, FaultCode

# Reading keeps a core busy; more readers would only compete for the cores.
PARALLEL: Final = 2
MODULE: Final = "hub.child"
# One arena of plain memory: only what is allocated counts against the bound of the address space.
_OWN_ENVIRONMENT: Final = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Rows of an answer are bounded, and every character may take six as JSON.
MAX_ANSWER_BYTES: Final = 64 << 20
# Ends of a process that the file causes; the file is not at fault for any other end.
_BROKEN: Final = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
)

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of reading one file, in addition to what an idle reader takes.

    Attributes:
        memory_bytes: base allowance; `bytes_a_byte` more per byte of the file. The rows of the
            largest accepted lines take some 400 MiB as Python objects.
        memory_bytes_max: upper limit for any file.
        cpu_seconds: base allowance; `cpu_seconds_a_mib` more per MiB of the file. A MiB of
            well-packed Parquet holds some 34,000 rows, which took 0.6 s of a core when measured.
        cpu_seconds_max: upper limit for any file; 20 million rows, the most that are read, take
            some 340 s.
        wall_factor: ratio of wall time to processor time that a busy machine may need.
    """

    memory_bytes: int = 512 << 20
    bytes_a_byte: int = 8
    memory_bytes_max: int = 2 << 30
    cpu_seconds: int = 30
    cpu_seconds_a_mib: int = 10
    cpu_seconds_max: int = 1800
    wall_factor: float = 4.0

    def job(self, path: Path, *, file_name: str = "", row_count: int = 0) -> Job:
        """The job for a file, with its limits."""
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

    def __init__(self, limits: Limits | None = None, *, module: str = MODULE) -> None:
        self._limits = limits or Limits()
        self._module = module
        self._gate = asyncio.Semaphore(PARALLEL)
        self._idle: list[Process[ReadAnswer]] = []
        self._busy: set[Process[ReadAnswer]] = set()

    @property
    def process_ids(self) -> list[int]:
        """Ids of the running processes."""
        return [reader.pid for reader in (*self._idle, *self._busy)]

    def start(self) -> None:
        """Starts a reader before the first file, so that it loads its libraries early."""
        if sys.platform != "linux":
            log.warning("memory of dataset readers is not bounded on this system")
        self._idle.append(self._started())

    def close(self) -> None:
        """Ends all readers, also busy ones."""
        for reader in (*self._idle, *self._busy):
            reader.end_now()
        self._idle.clear()

    async def inspect(self, path: Path, *, file_name: str) -> Inspection:
        """The figures of a file.

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

    async def _ask(self, job: Job) -> ReadAnswer:
        async with self._gate:
            reader = self._take()
            self._busy.add(reader)
            try:
                await reader.send(job, seconds=job.wall_seconds)
                answer = await reader.receive(seconds=job.wall_seconds)
                if isinstance(answer, End):
                    raise _fault_of(answer, job)
            except BaseException:
                # Also when the caller no longer waits.
                await reader.end()
                raise
            finally:
                self._busy.discard(reader)
            if answer.is_last:
                await reader.end()
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

    def _take(self) -> Process[ReadAnswer]:
        while self._idle:
            reader = self._idle.pop()
            if reader.alive:
                return reader
            reader.end_now()
        return self._started()

    def _started(self) -> Process[ReadAnswer]:
        program = Program(
            module=self._module,
            environment=environment_of(os.environ, own=_OWN_ENVIRONMENT),
            message_bytes_max=MAX_ANSWER_BYTES,
        )
        return Process.start(program, msgspec.json.Decoder(ReadAnswer))


def _fault_of(end: End, job: Job) -> Fault:
    """The fault for the end of a reader; it blames the file only when the file was the cause."""
    number = -(end.exit_code or 0)
    if end.cause is Cause.SIGNALLED and number in (*_BROKEN, signal.SIGXCPU):
        what = "its reader breaks on it"
        if number == signal.SIGXCPU:
            what = f"reading it takes more than {job.cpu_seconds} s"
        return Fault(
            FaultCode.DATASET_FILE_INVALID,
            f"The dataset file is not usable: {what}",
            remedy=WALL_REMEDY,
            **end.metadata,
        )
    if end.cause is Cause.DEADLINE or number == signal.SIGALRM:
        text = f"The reading of the dataset file did not end within {job.wall_seconds:g} s."
        return Fault(
            FaultCode.DEP_SERVICE_UNAVAILABLE, text, wall_seconds=job.wall_seconds, **end.metadata
        )
    text = "The reading of the dataset file was interrupted; commit the upload again."
    if end.cause is Cause.OUT_OF_MEMORY:
        text = "The memory of the hub's machine ran out; commit the upload again."
    return Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, text, **end.metadata)
