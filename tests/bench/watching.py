"""What a process and its children use, read from /proc while they work."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

SAMPLE_SECONDS = 0.01
_TICKS_PER_SECOND = sysconf("SC_CLK_TCK")
_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")
_WRITTEN = re.compile(r"wchar: (\d+)")


@dataclass(slots=True, kw_only=True)
class Peak:
    """The largest values seen: anonymous memory of all processes together, bytes in a folder."""

    anonymous_mib: float = 0.0
    folder_bytes: int = 0


@contextmanager
def watching(process_id: int, folder: Path, peak: Peak) -> Iterator[None]:
    """Samples a process with all that it started, and what lies in its work folder."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak.anonymous_mib = max(peak.anonymous_mib, anonymous_mib(process_id))
            peak.folder_bytes = max(peak.folder_bytes, folder_bytes(folder))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def anonymous_mib(process_id: int) -> float:
    """Memory that no file holds, of a process and its descendants, in MiB."""
    total = 0
    with suppress(OSError):
        match = _ANONYMOUS.search(Path(f"/proc/{process_id}/status").read_text())
        total = int(match[1]) if match else 0
    return total / 1024 + sum(anonymous_mib(child) for child in _children(process_id))


def processor_seconds(process_id: int) -> float:
    """Processor time of a process and of its children that have ended."""
    # Fields 14 to 17 of proc(5); the name before them may hold spaces, so that they are counted
    # from its end.
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_SECOND


def written_bytes(process_id: int) -> int:
    """Bytes that a process has handed to the system to write, to wherever."""
    match = _WRITTEN.search(Path(f"/proc/{process_id}/io").read_text())
    return int(match[1]) if match else 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder that may change meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _children(process_id: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{process_id}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
