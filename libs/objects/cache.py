"""A cache of model folders on a local disk that stays under a bound: the longest unused goes first.

Several processes share it. Who reads a folder holds its lock, shared; who deletes one holds it
alone, and only for the moment of a rename. What was renamed away bears no name that anybody looks
for, so that a process killed while it deletes leaves nothing that would be used.
"""

import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What stays free beside what is wanted, for logs and for whoever else writes to this disk.
RESERVE_BYTES: Final = 64 << 20
# Without a bound of its own the cache may take this part of its volume.
SHARE_OF_VOLUME: Final = 0.5
LOCKS_NAME: Final = ".in-use"
GRAVES_NAME: Final = ".deleted"

# Where entries lie, and how their names look: files from the store, models of the hub, conversions.
# Everything else under the root is no entry and stays: kernels, listings, work under way.
Places = Sequence[tuple[str, re.Pattern[str]]]
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_HUB_MODEL: Final = re.compile(r"models--.+")
NODE_PLACES: Final[Places] = (("store", _DIGEST), ("", _HUB_MODEL), ("gguf", _DIGEST))
# What the validator keeps: configs and tokenizers.
DESK_PLACES: Final[Places] = (("stored", _DIGEST), ("hub", _HUB_MODEL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """An entry that was deleted to make room; `name` is its path below the root."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    folder: Path
    size_bytes: int
    last_use: float


class FolderCache:
    """The entries below one root, and the bound that all of them share."""

    def __init__(
        self,
        root: Path,
        *,
        bound_bytes: int = 0,
        places: Places = NODE_PLACES,
        idle_seconds: float = 0.0,
    ) -> None:
        """A cache; nothing is made or deleted yet.

        Args:
            bound_bytes: all entries together, 0 for half of the volume.
            idle_seconds: an entry used so short a time ago is taken to be in use.
        """
        self._root = root
        self._bound_bytes = bound_bytes
        self._places = places
        self._idle_seconds = idle_seconds

    @contextmanager
    def using(self, folder: Path) -> Iterator[None]:
        """Keeps an entry from being deleted, whether it is there yet or is about to be made."""
        with self._lock_path(folder).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(lock.fileno())
            yield

    def forget(self, folder: Path, *, in_use_too: bool = False) -> bool:
        """Deletes an entry; False when it is in use or not there.

        Args:
            in_use_too: it is rotten; what others have open stays readable for them.
        """
        if not folder.exists():
            return False
        grave = self._root / GRAVES_NAME / uuid.uuid4().hex
        grave.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_path(folder).open("ab") as lock:
            try:
                if not in_use_too:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(grave)
            except OSError:
                # In use, deleted already, or not ours to move.
                return False
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def make_room(self, needed_bytes: int, *, at: Path | None = None) -> list[Evicted]:
        """Deletes what was not used for longest, until so many bytes fit; returns what went.

        They fit when the entries stay under the bound and the disk has them free. What is in use
        stays, so that they may not fit afterwards either. A disk on which they would not fit even
        without any entry costs none.

        Args:
            needed_bytes: what is about to be written.
            at: where, when that is not the cache; on another disk nothing here is in its way.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._bury()
        goes_into_cache = at is None
        if at is not None and at.stat().st_dev != self._root.stat().st_dev:
            return []
        added_bytes = needed_bytes if goes_into_cache else 0
        wanted_bytes = needed_bytes + RESERVE_BYTES
        disk = shutil.disk_usage(self._root)
        bound_bytes = self._bound_bytes or int(disk.total * SHARE_OF_VOLUME)
        if disk.free >= wanted_bytes and disk.used + added_bytes <= bound_bytes:
            # Everything on the disk together is under the bound: the entries need no counting.
            return []
        entries = sorted(self._entries(), key=lambda entry: entry.last_use)
        used_bytes = sum(entry.size_bytes for entry in entries)
        newest_use = time.time() - self._idle_seconds
        can_help = disk.free + used_bytes >= wanted_bytes
        evicted: list[Evicted] = []
        for entry in entries:
            is_free = shutil.disk_usage(self._root).free >= wanted_bytes or not can_help
            if is_free and used_bytes + added_bytes <= bound_bytes:
                break
            if entry.last_use <= newest_use and self.forget(entry.folder):
                used_bytes -= entry.size_bytes
                name = entry.folder.relative_to(self._root).as_posix()
                evicted.append(Evicted(name=name, size_bytes=entry.size_bytes))
        return evicted

    def _bury(self) -> None:
        """Deletes what a killed process had renamed away only."""
        with suppress(FileNotFoundError):
            for grave in os.scandir(self._root / GRAVES_NAME):
                shutil.rmtree(grave.path, ignore_errors=True)

    def _entries(self) -> Iterator[_Entry]:
        for place, pattern in self._places:
            with suppress(FileNotFoundError):
                for found in os.scandir(self._root / place):
                    if pattern.fullmatch(found.name) and found.is_dir(follow_symlinks=False):
                        yield self._entry(Path(found.path))

    def _entry(self, folder: Path) -> _Entry:
        # An entry from before there were locks was used when it was made, at the latest.
        last_use = 0.0
        for path in (self._lock_path(folder), folder):
            with suppress(OSError):
                last_use = max(last_use, path.stat().st_mtime)
        return _Entry(folder=folder, size_bytes=folder_bytes(folder), last_use=last_use)

    def _lock_path(self, folder: Path) -> Path:
        """The lock lies outside of the entry, so that it outlives it; it is empty and stays."""
        locks = self._root / LOCKS_NAME
        locks.mkdir(parents=True, exist_ok=True)
        return locks / folder.relative_to(self._root).as_posix().replace("/", "%")


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take; links count as themselves, what goes meanwhile is 0."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total
