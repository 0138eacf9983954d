"""The supervisor: starts processes in order, restarts those that die or hang, reports their state.

`deploy.local.stack` runs it, which `tunesmith up` starts. It holds the state folder's lock for
life, and its children end with it, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from deploy.local import places, process
from deploy.local.process import ProcessSpec
from deploy.local.refusal import SetupRefused

FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 10.0
# After this uptime an earlier crash no longer counts towards the backoff.
STEADY_SECONDS = 30.0
# A process that dies this often before it was ever ready is not restarted again.
STARTS_BEFORE_GIVING_UP = 5
READY_POLL_SECONDS = 0.2
# Interval of health checks, and the failures in a row after which a process counts as hanging: a
# machine under full load answers late, but earlier than that.
PULSE_SECONDS = 5.0
PULSE_DEADLINE_SECONDS = 5.0
PULSE_MISSES = 6
HOUSEKEEPING_SECONDS = 5.0
LOG_LIMIT_BYTES = 20 * 1024**2
LOGS_KEPT = 3
SHOWN_LOG_LINES = 25


@dataclass(slots=True, kw_only=True)
class Condition:
    """The state of one process; mutable, as it changes while the process runs."""

    name: str
    port: int | None
    state: str = "waiting"
    pid: int | None = None
    restarts: int = 0
    since: float = 0.0
    last_exit: int | None = None


class Supervisor:
    """Runs a list of processes until a stop is requested."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        status: Path,
        pids: Path,
        after_level: Callable[[int], Awaitable[None]] | None = None,
        first_backoff_seconds: float = FIRST_BACKOFF_SECONDS,
        pulse_seconds: float = PULSE_SECONDS,
        pulse_deadline_seconds: float = PULSE_DEADLINE_SECONDS,
    ) -> None:
        """Store the settings; `run` starts the processes.

        Args:
            status: file that is kept up to date with the condition of every process.
            pids: folder with a record per running process.
            after_level: awaited when every process of a level is ready, before the next level.
            first_backoff_seconds: pause before the first restart; doubles with each one.
            pulse_seconds: interval of health checks.
            pulse_deadline_seconds: deadline of a health check.
        """
        self._specs = list(specs)
        self._status = status
        self._pids = pids
        self._after_level = after_level
        self._first_backoff_seconds = first_backoff_seconds
        self._pulse_seconds = pulse_seconds
        self._pulse_deadline_seconds = pulse_deadline_seconds
        self._conditions = {s.name: Condition(name=s.name, port=s.port) for s in specs}
        self._ready = {s.name: asyncio.Event() for s in specs}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self._all_ready = False
        self._failure: str | None = None

    def stop(self) -> None:
        """Ask for the end; `run` returns when all processes have ended."""
        self._stopping.set()

    async def run(self) -> int:
        """Start everything, keep it running, end it; 0, or 1 when the start failed."""
        self._publish()
        tidy = asyncio.create_task(self._keep_house())
        try:
            await self._start_levels()
            self._all_ready = True
            self._publish()
            await self._stopping.wait()
            return 0
        except SetupRefused as refused:
            self._failure = str(refused)
            print(f"supervisor: {refused}", file=sys.stderr, flush=True)
            return 1
        finally:
            self._stopping.set()
            tidy.cancel()
            await self._end_all()
            self._all_ready = False
            self._publish()

    async def _start_levels(self) -> None:
        for level in sorted({spec.level for spec in self._specs}):
            members = [spec for spec in self._specs if spec.level == level]
            for spec in members:
                self._keepers[spec.name] = asyncio.create_task(self._keep(spec))
            for spec in members:
                await self._wait_until_ready(spec)
            if self._stopping.is_set():
                return
            if self._after_level is not None:
                await self._after_level(level)

    async def _wait_until_ready(self, spec: ProcessSpec) -> None:
        ready = asyncio.create_task(self._ready[spec.name].wait())
        stopping = asyncio.create_task(self._stopping.wait())
        waits = {ready, stopping, self._keepers[spec.name]}
        try:
            await asyncio.wait(
                waits, timeout=spec.ready_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
            stopping.cancel()
        if self._ready[spec.name].is_set() or self._stopping.is_set():
            return
        condition = self._conditions[spec.name]
        why = (
            f"ended {condition.restarts} times, last with exit code {condition.last_exit}"
            if self._keepers[spec.name].done()
            else f"was not ready within {spec.ready_seconds:.0f} s"
        )
        raise SetupRefused(
            f"{spec.name} {why}.", next_step=f"Its log is {spec.log}.", detail=last_lines(spec.log)
        )

    async def _keep(self, spec: ProcessSpec) -> None:
        """Start one process again whenever it ends, with a growing pause."""
        condition = self._conditions[spec.name]
        pause = self._first_backoff_seconds
        while not self._stopping.is_set():
            started = time.monotonic()
            child = await self._spawn(spec)
            probe = asyncio.create_task(self._tend(spec, child.pid))
            condition.last_exit = await child.wait()
            probe.cancel()
            self._running.pop(spec.name, None)
            self._set(condition, "ended", pid=None)
            (self._pids / f"{spec.name}.json").unlink(missing_ok=True)
            # Kill the processes that it had started, so that the restart does not duplicate them.
            process.signal_group(child.pid, signal.SIGKILL)
            if self._stopping.is_set():
                return
            condition.restarts += 1
            print(
                f"{_timestamp()} {spec.name} ended with exit code {condition.last_exit}; "
                f"restart {condition.restarts} in {pause:.2f} s",
                flush=True,
            )
            if time.monotonic() - started > STEADY_SECONDS:
                pause = self._first_backoff_seconds
            never_ready = not self._ready[spec.name].is_set()
            if never_ready and condition.restarts >= STARTS_BEFORE_GIVING_UP:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=pause)
            pause = min(pause * 2, LONGEST_BACKOFF_SECONDS)

    async def _spawn(self, spec: ProcessSpec) -> asyncio.subprocess.Process:
        with spec.log.open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *process.launch_argv(spec, parent=os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=spec.folder,
                env=dict(spec.environment),
                start_new_session=True,
            )
        self._running[spec.name] = child
        process.write_record(self._pids, spec.name, child.pid)
        self._set(self._conditions[spec.name], "starting", pid=child.pid)
        return child

    async def _tend(self, spec: ProcessSpec, pid: int) -> None:
        """Watch one start of a process: when it begins to serve, and whether it still serves.

        A hanging process is killed, and then restarted like any other that died.
        """
        if not await self._comes_up(spec):
            why = f"was not ready within {spec.ready_seconds:.0f} s of its restart"
        else:
            self._set(self._conditions[spec.name], "ready", pid=pid)
            self._ready[spec.name].set()
            why = await self._silence(spec)
        if self._stopping.is_set():
            return
        print(f"{_timestamp()} {spec.name} {why}, killed", flush=True)
        self._set(self._conditions[spec.name], "hangs", pid=pid)
        process.signal_group(pid, signal.SIGKILL)

    async def _comes_up(self, spec: ProcessSpec) -> bool:
        """Whether it is ready in time; the caller of `up` bounds the first start."""
        is_first = not self._ready[spec.name].is_set()
        deadline = time.monotonic() + spec.ready_seconds
        while not await self._answers(spec):
            if not is_first and time.monotonic() > deadline:
                return False
            await asyncio.sleep(READY_POLL_SECONDS)
        return True

    async def _silence(self, spec: ProcessSpec) -> str:
        """Returns after so many failed health checks that it counts as hanging, or at the stop."""
        misses, since = 0, time.monotonic()
        while misses < PULSE_MISSES and not self._stopping.is_set():
            await asyncio.sleep(self._pulse_seconds)
            if await self._answers(spec):
                misses, since = 0, time.monotonic()
            else:
                misses += 1
        return f"did not answer for {time.monotonic() - since:.0f} s"

    async def _answers(self, spec: ProcessSpec) -> bool:
        try:
            async with asyncio.timeout(self._pulse_deadline_seconds):
                return await spec.is_ready()
        except TimeoutError:
            return False

    async def _end_all(self) -> None:
        """End level by level, the last started first."""
        for level in sorted({spec.level for spec in self._specs}, reverse=True):
            members = [spec for spec in self._specs if spec.level == level]
            await asyncio.gather(*(self._end(spec) for spec in members))
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _end(self, spec: ProcessSpec) -> None:
        child = self._running.get(spec.name)
        if child is None:
            return
        process.signal_one(child.pid, spec.stop_signal)
        keeper = self._keepers[spec.name]
        _, waiting = await asyncio.wait({keeper}, timeout=spec.stop_seconds)
        if waiting:
            print(f"{_timestamp()} {spec.name} did not end, killed", flush=True)
            process.signal_group(child.pid, signal.SIGKILL)
            await asyncio.wait({keeper}, timeout=spec.stop_seconds)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for spec in self._specs:
                rotate(spec.log)

    def _set(self, condition: Condition, state: str, *, pid: int | None) -> None:
        condition.state, condition.pid, condition.since = state, pid, time.time()
        self._publish()

    def _publish(self) -> None:
        record = {
            "pid": os.getpid(),
            "ready": self._all_ready,
            "failure": self._failure,
            "processes": [asdict(condition) for condition in self._conditions.values()],
        }
        places.write_whole(self._status, json.dumps(record, indent=2), mode=0o600)


def rotate(log: Path, *, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Rotate a large log by copy and truncate; the writer continues in the emptied file."""
    try:
        if log.stat().st_size < limit_bytes:
            return
    except OSError:
        return
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    # Writers append, so they continue at the new end after the truncation.
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def last_lines(log: Path, count: int = SHOWN_LOG_LINES) -> str:
    """The end of a log, for a message."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def hold_lock(path: Path) -> TextIO:
    """Take the lock of a state folder for the life of this process.

    Raises:
        SetupRefused: another supervisor has it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SetupRefused(
            "This stack is already running.", next_step="See 'tunesmith status'."
        ) from None
    return file


async def supervise(supervisor: Supervisor) -> int:
    """Run a supervisor until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    return await supervisor.run()


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
