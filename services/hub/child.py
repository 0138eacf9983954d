"""The process that reads users' dataset files: `python -m hub.child CHANNEL`.

It receives jobs and returns one answer to each, until there are no more. It holds no secret and no
socket, cannot write files, and the system bounds time and memory of each job: a file of some
kilobytes can make its reader allocate gigabytes.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import msgspec

from chassis.child.channel import Channel, limit
from corpus.formats import Inspection, inspect_file, iterate_rows
from lexicon.faults import Fault, FaultCode

# Half of what a response may carry; rows beyond it are left out.
MAX_PREVIEW_CHARACTERS: Final = 4 << 20
# A process is replaced by a fresh one after so many answers, or when it holds so much memory.
MAX_JOBS: Final = 500
MAX_KEPT_BYTES: Final = 128 << 20
WALL_REMEDY: Final = (
    "Save the file as UTF-8 JSONL, or write the Parquet with smaller row groups and pages, and "
    "push it again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to read, with its limits.

    Attributes:
        file_name: as the user gave it.
        row_count: first rows that are wanted; 0 for an inspection of the whole file.
        memory_bytes: address space beyond what the process has without any file.
        cpu_seconds: time of the processor, which does not grow when the machine is busy.
        wall_seconds: time after which the process ends by itself, also without a waiting parent.
    """

    path: str
    file_name: str = ""
    row_count: int = 0
    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswer:
    """What was found, or the fault in its place.

    Attributes:
        rows: the first rows as JSON.
        unexpected: kind and place of an unexpected error.
        is_last: the process ends now.
    """

    inspection: Inspection | None = None
    rows: list[str] = field(default_factory=list)
    code: str = ""
    message: str = ""
    remedy: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    unexpected: str = ""
    is_last: bool = False


def run(job: Job) -> ReadAnswer:
    """Does the job; an error that the file causes is an answer too."""
    path = Path(job.path)
    try:
        if job.row_count:
            return ReadAnswer(
                rows=row_texts(row for _, row in islice(iterate_rows(path), job.row_count))
            )
        return ReadAnswer(inspection=inspect_file(path, file_name=job.file_name))
    except Fault as fault:
        if _is_from_memory(fault):
            return _out_of_room(job)
        return _refusal(fault)
    except MemoryError:
        return _out_of_room(job)
    except Exception as error:  # noqa: BLE001 (the edge of this process; reported without its text)
        return ReadAnswer(unexpected=_place_of(error), is_last=True)


def row_texts(rows: Iterable[Any]) -> list[str]:
    """Rows as JSON, as many as fit into one message."""
    texts: list[str] = []
    left = MAX_PREVIEW_CHARACTERS
    for row in rows:
        # Invalid Unicode is escaped, so that it can be sent.
        text = json.dumps(row, ensure_ascii=False, default=str)
        text = text if text.isascii() or _encodes(text) else json.dumps(row, default=str)
        left -= len(text)
        if left < 0:
            break
        texts.append(text)
    return texts


def main() -> None:
    """Jobs and answers, until there are no more jobs or the process is to be replaced."""
    jobs: SimpleQueue[Job] = SimpleQueue()
    channel = Channel(sys.argv[1], msgspec.json.Decoder(Job), jobs.put)
    _preload()
    # This process writes no files, and a crash writes no core dump with users' rows.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bare_bytes = address_space_bytes()
    for count in range(1, MAX_JOBS + 1):
        job = jobs.get()
        _bound(job, bare_bytes)
        answer = run(job)
        _bound(None, bare_bytes)
        is_last = count == MAX_JOBS or address_space_bytes() - bare_bytes > MAX_KEPT_BYTES
        answer = replace(answer, is_last=answer.is_last or is_last)
        channel.send(answer)
        if answer.is_last:
            return


def address_space_bytes() -> int:
    """Address space of this process; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _preload() -> None:
    """Loads the readers before the first file, with one thread each to save stacks."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _bound(job: Job | None, bare_bytes: int) -> None:
    """Bounds what is done from here on; None lifts the bounds, up to the next job."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    used_seconds = int(used.ru_utime + used.ru_stime)
    room, cpu_seconds = None, None
    if job is not None:
        cpu_seconds = used_seconds + 1 + job.cpu_seconds
        if bare_bytes:
            room = bare_bytes + job.memory_bytes
    limit(resource.RLIMIT_AS, room)
    limit(resource.RLIMIT_CPU, cpu_seconds)
    # The process also ends by itself: the parent that waits for the answer may have ended.
    signal.setitimer(signal.ITIMER_REAL, job.wall_seconds if job else 0.0)


def _out_of_room(job: Job) -> ReadAnswer:
    mib = job.memory_bytes >> 20
    fault = Fault(
        FaultCode.DATASET_FILE_INVALID,
        f"The dataset file is not usable: reading it takes more than {mib} MiB of memory",
        remedy=WALL_REMEDY,
        limit_mib=mib,
    )
    return _refusal(fault, is_last=True)


def _refusal(fault: Fault, *, is_last: bool = False) -> ReadAnswer:
    return ReadAnswer(
        code=fault.code.value,
        message=fault.message,
        remedy=fault.remedy,
        metadata=fault.metadata,
        is_last=is_last,
    )


def _is_from_memory(error: BaseException | None) -> bool:
    """Whether the reader's own error reports a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place_of(error: Exception) -> str:
    """Kind of an error and the line that raised it; its text may hold content of the file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__} {place}"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
