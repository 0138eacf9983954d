"""Files on this machine's disk: described, named safely, settled for good, and locked."""

import asyncio
import errno
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lexicon.faults import Fault, FaultCode

MAX_PATH_CHARACTERS: Final = 512
LOCK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """Size and digest of a file on disk."""

    path: Path
    size_bytes: int
    sha256: str


def describe(path: Path) -> LocalFile:
    """Returns size and sha256 of a file on disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        size_bytes = file.tell()
    return LocalFile(path=path, size_bytes=size_bytes, sha256=digest.hexdigest())


def safe_path(folder: Path, relative: str) -> Path:
    """Returns `folder / relative` when that stays inside the folder on every system.

    Raises:
        Fault: STORAGE_KEY_INVALID for absolute paths, `..`, drive letters, backslashes, control
            characters and paths through a link that leads out.
    """
    segments = relative.split("/")
    hostile = (
        not relative
        or len(relative) > MAX_PATH_CHARACTERS
        or any(segment in {"", ".", ".."} for segment in segments)
        or any(character in '\\:*?"<>|' or not character.isprintable() for character in relative)
    )
    root = folder.resolve()
    target = root.joinpath(*segments) if not hostile else root
    if hostile or not target.resolve().is_relative_to(root) or target.is_symlink():
        raise Fault(FaultCode.STORAGE_KEY_INVALID, "A file's path would leave its folder.")
    return target


def settle(partial: Path, target: Path) -> None:
    """Gives a finished file its name for good: fsync, rename, fsync of the folder."""
    with partial.open("ab") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """Holds a lock file; it goes with the process that holds it, however that ends."""
    with path.open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(LOCK_SECONDS)
            else:
                break
        yield


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full disk into its code; other disk errors stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Fault(FaultCode.STORAGE_FULL, "The node's disk is full.") from error
        raise
