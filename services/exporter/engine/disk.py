"""The disk: room checked before work, a full one reported by its code, renames that last."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lexicon.faults import Fault, FaultCode

PARTIAL: Final = ".partial"
# What must stay free beside the file itself.
RESERVE_BYTES: Final = 64 << 20
_FULL_BYTES: Final = 1 << 20
# No step that writes into a cache takes as long.
LEFTOVER_SECONDS: Final = 24 * 3600.0


def reserve_disk(folder: Path, size_bytes: int) -> None:
    """Checks before any work that a file of that size fits.

    Raises:
        Fault: EXPORT_DISK_FULL.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes + RESERVE_BYTES:
        raise Fault(
            FaultCode.EXPORT_DISK_FULL,
            f"The export needs {size_bytes + RESERVE_BYTES} bytes of disk, {free_bytes} are free.",
            needed_bytes=size_bytes + RESERVE_BYTES,
            free_bytes=free_bytes,
        )


def conversion_bytes(checkpoint: Path) -> int:
    """What a checkpoint takes as GGUF, estimated from its weights."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) * 21 // 20


def is_full(folder: Path) -> bool:
    """Whether a disk is as good as full, after a tool has failed there without saying why."""
    return shutil.disk_usage(folder).free < _FULL_BYTES


def forget_leftovers(folder: Path, pattern: str) -> None:
    """Deletes what killed processes left there; what is younger than a day may be in work."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < LEFTOVER_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full disk into its code; other disk errors stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise Fault(FaultCode.EXPORT_DISK_FULL) from error


def write_at(file: int, content: Any, place: int) -> None:
    """Writes all of a buffer at a place of an open file; the system may take less at once.

    Raises:
        OSError: the disk is full, or broken.
    """
    left = memoryview(content).cast("B")
    while left:
        count = os.pwrite(file, left, place)
        left, place = left[count:], place + count


def sync_file(path: Path) -> None:
    """Makes a file's content survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
