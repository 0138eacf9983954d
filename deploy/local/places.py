"""Folders and files of the bootstrap: cache, locks, logs, and the record of what it installed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.refusal import SetupRefused

# A llama.cpp build takes about two minutes on two cores; another setup is waited for this long.
LOCK_WAIT_SECONDS = 1800.0
# No step of a setup takes this long, so an older scratch folder belongs to a killed setup.
STALE_SECONDS = 86_400.0
RECORD_NAME = "tunesmith-parts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that the bootstrap has installed, for the stack.

    Attributes:
        stamp: sha256 over all inputs that determine what is installed.
        llama_vendor: folder with llama.cpp's converters and their gguf-py.
        nats_server: path of the server binary.
        nats_version: version that the binary reports.
        nats_source: how it was found.
        postgres: folder with bin/, lib/ and share/ of Postgres.
        seconds: how long each step of the last bootstrap that did work took.
    """

    stamp: str
    llama_vendor: str
    nats_server: str
    nats_version: str
    nats_source: str
    postgres: str
    seconds: dict[str, float] = field(default_factory=dict)


def repository() -> Path:
    """The checkout that contains this file."""
    return Path(__file__).resolve().parents[2]


def environment_folder() -> Path:
    """The virtual environment of this checkout."""
    return repository() / ".venv"


def environment_python() -> Path:
    """The interpreter of that environment."""
    return environment_folder() / "bin" / "python"


def cache_folder() -> Path:
    """The folder for files that are built or downloaded once per machine and user.

    Raises:
        SetupRefused: it cannot be made or written.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    folder = home / "tunesmith"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupRefused(
            f"The cache folder {folder} cannot be made: {error.strerror}.",
            next_step="Set XDG_CACHE_HOME to a folder that you may write to.",
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupRefused(
            f"The cache folder {folder} is not writable.",
            next_step="Set XDG_CACHE_HOME to a folder that you may write to.",
        )
    return folder


def scratch_folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """A folder in the cache that is removed after use; those of killed setups are removed first.

    Args:
        name: its purpose; a name has one use at a time, for less than a day.
    """
    oldest = time.time() - STALE_SECONDS
    for left in cache_folder().glob(f"{name}.making-*"):
        if left.stat().st_mtime < oldest:
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"{name}.making-")


def shared_folders() -> list[Path]:
    """Folders of root that an ordinary account can enter, best first."""
    return [Path("/var/lib/tunesmith"), Path("/var/tmp/tunesmith-root")]  # noqa: S108 (checked below)


def make_shared_folder() -> Path:
    """The first of those that can be made, owned by root and writable by root alone.

    Raises:
        SetupRefused: none can be made.
    """
    for folder in shared_folders():
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        # In a world-writable place another account may have created the folder beforehand.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022:
            return folder
    raise SetupRefused(
        "No folder was found that both root and Postgres' own account can reach.",
        next_step="Start the stack as an ordinary user, or make /var/lib writable.",
    )


def reachable_by_others(path: Path) -> bool:
    """Whether any account can enter every folder down to this path."""
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents] if parent.is_dir())


def platform_key() -> str:
    """Operating system, processor and C library, on which compiled files depend."""
    libc = "-".join(part for part in platform.libc_ver() if part)
    return "-".join(p for p in (platform.system(), platform.machine(), libc) if p).lower()


def read_parts() -> Parts | None:
    """What the last bootstrap recorded, or None."""
    try:
        record = json.loads((environment_folder() / RECORD_NAME).read_text(encoding="utf-8"))
        return Parts(**record)
    except (OSError, ValueError, TypeError):
        return None


def write_parts(parts: Parts) -> None:
    """Record it, all or nothing."""
    write_whole(environment_folder() / RECORD_NAME, json.dumps(asdict(parts), indent=2) + "\n")


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file atomically: a reader sees the old or the new text."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def exclusive(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold a file lock that the operating system releases when this process dies.

    Args:
        waiting: printed once when another process holds it.
    Raises:
        SetupRefused: the lock was not acquired within LOCK_WAIT_SECONDS.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    said = False
    with path.open("a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise SetupRefused(
                        f"Another process has held {path} for {LOCK_WAIT_SECONDS / 60:.0f} min.",
                        next_step="End that process and start again.",
                    ) from None
                if not said:
                    print(waiting, flush=True)
                    said = True
                time.sleep(0.2)
        yield
