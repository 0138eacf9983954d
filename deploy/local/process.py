"""One process of the stack: start it, recognise it later, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.local import places

LAUNCHER = Path(__file__).with_name("launch.py")
# In every process's environment, to find processes that outlived their supervisor.
MARK = "TUNESMITH_STACK_ID"
POLL_SECONDS = 0.05
# Linux reports the start of a process in ticks since boot, which no clock change moves.
OWN_STAT = Path("/proc/self/stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What the supervisor needs to know to run one process.

    Attributes:
        level: processes of a lower level are ready before this one is started.
        argv: program and arguments; the program is an absolute path.
        environment: the whole environment, nothing is inherited.
        is_ready: whether it serves; called periodically while it runs.
        port: shown in tables, None when it has none.
        user: account to run as, None for our own.
        stop_signal: asks it to end.
        stop_seconds: how long it may take before it is killed.
        ready_seconds: how long a start may take.
    """

    name: str
    level: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    port: int | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    ready_seconds: float = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A process that was started: its id, and what distinguishes it from a later one of that id."""

    name: str
    pid: int
    birth: str


def launch_argv(spec: ProcessSpec, *, parent: int) -> list[str]:
    """The command that starts a process tied to the life of its supervisor."""
    user = ["--user", spec.user] if spec.user else []
    tied = ["--parent", str(parent), "--signal", spec.stop_signal.name, *user]
    return [sys.executable, "-I", "-S", str(LAUNCHER), *tied, "--", *spec.argv]


def birth_of(pid: int) -> str | None:
    """What distinguishes this process from others of the same id; None when none runs."""
    if not OWN_STAT.exists():
        return _birth_by_psutil(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    state, start_ticks = fields[0], fields[19]
    return None if state in {"Z", "X"} else f"{_boot_id()}:{start_ticks}"


def is_alive(record: Record) -> bool:
    """Whether this very process still runs."""
    return birth_of(record.pid) == record.birth


def write_record(folder: Path, name: str, pid: int) -> None:
    """Record the id of a process that was just started."""
    birth = birth_of(pid)
    if birth is not None:
        text = json.dumps({"name": name, "pid": pid, "birth": birth})
        places.write_whole(folder / f"{name}.json", text, mode=0o600)


def read_records(folder: Path) -> list[Record]:
    """Every recorded process, alive or not."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return records


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group of a started process; a group that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def signal_one(pid: int, number: signal.Signals) -> None:
    """Signal one process; a process that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def marked(stack_id: str) -> list[psutil.Process]:
    """Every process of our account with this stack's mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == stack_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def sweep(stack_id: str, folder: Path, *, wait_seconds: float) -> list[str]:
    """End what is left of a stack whose supervisor has ended; return the names of what was killed.

    Asks first, then kills: the recorded processes with their groups, and processes with the mark.
    """
    killed: list[str] = []
    for record in read_records(folder):
        if is_alive(record):
            signal_group(record.pid, signal.SIGINT if record.name == "postgres" else signal.SIGTERM)
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        if not any(is_alive(record) for record in read_records(folder)) and not marked(stack_id):
            break
        time.sleep(POLL_SECONDS)
    for record in read_records(folder):
        if is_alive(record):
            signal_group(record.pid, signal.SIGKILL)
            killed.append(record.name)
    for process in marked(stack_id):
        try:
            killed.append(process.name())
            process.kill()
            process.wait(timeout=wait_seconds)
        except psutil.Error:
            continue
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)
    return killed


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _birth_by_psutil(pid: int) -> str | None:
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.2f}"
    except psutil.Error:
        return None
