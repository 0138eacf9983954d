"""The supervisor with small programs in place of services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.local import process, supervisor
from deploy.local.process import MARK, ProcessSpec
from deploy.local.supervisor import Supervisor

STACK = "0123456789abcdef"
WAIT_SECONDS = 15.0
FOREVER = "import signal; signal.pause()"


def a_spec(folder: Path, name: str, code: str, *, level: int = 0, **changes: Any) -> ProcessSpec:
    """A process that is ready as soon as it runs, unless told otherwise."""

    async def is_ready() -> bool:
        return True

    settings: dict[str, Any] = {
        "name": name,
        "level": level,
        "argv": (sys.executable, "-c", code),
        "environment": {MARK: STACK},
        "folder": folder,
        "log": folder / f"{name}.log",
        "is_ready": is_ready,
        "stop_seconds": 1.0,
    }
    return ProcessSpec(**settings | changes)


def a_supervisor(folder: Path, *specs: ProcessSpec, **settings: Any) -> Supervisor:
    """Its records lie below the folder."""
    (folder / "pids").mkdir(exist_ok=True)
    return Supervisor(specs, status=folder / "status.json", pids=folder / "pids", **settings)


def status(folder: Path) -> dict[str, Any]:
    """What the supervisor last wrote, processes by name."""
    record = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return {**record, "by_name": {entry["name"]: entry for entry in record["processes"]}}


async def until(holds: Callable[[], bool]) -> None:
    """Wait, bounded, for something that another process does."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def test_levels_start_in_order_and_end_in_reverse(tmp_path: Path) -> None:
    """A service never starts before the database that it needs."""
    notes = tmp_path / "notes"
    code = (
        "import signal, sys\n"
        f"note = lambda word: open({str(notes)!r}, 'a').write(sys.argv[1] + word)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (note('- '), sys.exit(0)))\n"
        "note('+ ')\n"
        "signal.pause()\n"
    )

    def noted(name: str) -> Callable[[], Any]:
        async def is_ready() -> bool:
            return notes.exists() and f"{name}+" in notes.read_text(encoding="utf-8")

        return is_ready

    specs = [
        a_spec(tmp_path, name, "", level=level, is_ready=noted(name),
               argv=(sys.executable, "-c", code, name))
        for level, name in enumerate(("first", "second"))
    ]  # fmt: skip
    running = a_supervisor(tmp_path, *specs)
    task = asyncio.create_task(running.run())
    await until(lambda: (tmp_path / "status.json").exists() and status(tmp_path)["ready"])
    running.stop()
    assert await task == 0
    assert notes.read_text(encoding="utf-8").split() == ["first+", "second+", "second-", "first-"]


async def test_what_dies_is_started_again_and_counted(tmp_path: Path) -> None:
    """kill -9 of a service costs a restart and nothing else."""
    running = a_supervisor(
        tmp_path, a_spec(tmp_path, "one", FOREVER), a_spec(tmp_path, "two", FOREVER)
    )
    task = asyncio.create_task(running.run())
    await until(lambda: (tmp_path / "status.json").exists() and status(tmp_path)["ready"])
    first, other = (status(tmp_path)["by_name"][name]["pid"] for name in ("one", "two"))
    os.kill(first, signal.SIGKILL)
    await until(lambda: status(tmp_path)["by_name"]["one"]["restarts"] == 1
                and status(tmp_path)["by_name"]["one"]["state"] == "ready")  # fmt: skip
    now = status(tmp_path)["by_name"]
    running.stop()
    await task
    assert now["one"]["pid"] != first
    assert now["one"]["last_exit"] == -signal.SIGKILL
    assert (now["two"]["pid"], now["two"]["restarts"]) == (other, 0)


async def test_what_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    """A stopped process holds its port and answers nobody; its end is told like any other."""
    beat = tmp_path / "beat"
    code = (
        "import os, sys, time\n"
        "while True: open(sys.argv[1] + '.new', 'w').write(str(os.getpid()));"
        " os.replace(sys.argv[1] + '.new', sys.argv[1]); time.sleep(0.01)\n"
    )

    async def is_ready() -> bool:
        beat.unlink(missing_ok=True)
        while not beat.exists():
            await asyncio.sleep(0.01)
        return True

    hanging = a_spec(
        tmp_path, "hanging", "", argv=(sys.executable, "-c", code, str(beat)), is_ready=is_ready
    )
    other = a_spec(tmp_path, "other", FOREVER)
    running = a_supervisor(tmp_path, hanging, other, pulse_seconds=0.01, pulse_deadline_seconds=1.0)
    task = asyncio.create_task(running.run())
    await until(lambda: (tmp_path / "status.json").exists() and status(tmp_path)["ready"])
    first = status(tmp_path)["by_name"]["hanging"]["pid"]
    os.kill(first, signal.SIGSTOP)
    await until(lambda: status(tmp_path)["by_name"]["hanging"]["restarts"] == 1
                and status(tmp_path)["by_name"]["hanging"]["state"] == "ready")  # fmt: skip
    now = status(tmp_path)["by_name"]
    running.stop()
    assert await task == 0
    assert now["hanging"]["pid"] != first
    assert now["hanging"]["last_exit"] == -signal.SIGKILL
    assert now["other"]["restarts"] == 0


async def test_one_late_answer_is_no_hang(tmp_path: Path) -> None:
    """A machine under load answers late now and then."""
    answers = iter([True, *[False] * 5, True, *[False] * 5])
    asked = asyncio.Event()

    async def is_ready() -> bool:
        found = next(answers, None)
        if found is None:
            asked.set()
        return found is not False

    running = a_supervisor(
        tmp_path, a_spec(tmp_path, "late", FOREVER, is_ready=is_ready), pulse_seconds=0.001
    )
    task = asyncio.create_task(running.run())
    await asyncio.wait_for(asked.wait(), WAIT_SECONDS)
    found = status(tmp_path)["by_name"]["late"]
    running.stop()
    await task
    assert (found["restarts"], found["state"]) == (0, "ready")


async def test_a_process_that_never_comes_up_fails_the_start_with_its_log(tmp_path: Path) -> None:
    """The person sees why, and nothing is left running."""

    async def never() -> bool:
        return False

    broken = a_spec(
        tmp_path, "broken", "import sys; sys.exit('no such setting')", level=1, is_ready=never
    )
    fine = a_spec(tmp_path, "fine", FOREVER)
    running = a_supervisor(tmp_path, fine, broken, first_backoff_seconds=0.01)
    assert await asyncio.wait_for(running.run(), WAIT_SECONDS) == 1
    found = status(tmp_path)
    assert not found["ready"]
    assert "broken ended 5 times, last with exit code 1" in found["failure"]
    assert "no such setting" in found["failure"]
    assert not process.marked(STACK)


async def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """`down` always ends."""
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
    )
    armed = tmp_path / "armed"
    code = code.replace("\n", f"; open({str(armed)!r}, 'w').close()\n")
    running = a_supervisor(tmp_path, a_spec(tmp_path, "deaf", code, stop_seconds=0.2))
    task = asyncio.create_task(running.run())
    await until(armed.exists)
    running.stop()
    assert await asyncio.wait_for(task, WAIT_SECONDS) == 0
    assert not process.marked(STACK)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties lives together on Linux")
async def test_processes_end_with_their_supervisor_however_it_ends(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves no process behind."""
    code = (
        "import os, subprocess, sys\n"
        "launch = [sys.executable, '-I', '-S', sys.argv[1], '--parent', str(os.getpid()),"
        " '--signal', 'SIGTERM', '--', sys.executable, '-c', 'import signal; signal.pause()']\n"
        "print(subprocess.Popen(launch).pid, flush=True)\n"
        "import signal; signal.pause()\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(process.LAUNCHER), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    # Until the launcher has become the program, the tie is not made yet.
    await until(lambda: b"signal.pause" in Path(f"/proc/{child}/cmdline").read_bytes())
    parent.kill()
    await parent.wait()
    await until(lambda: process.birth_of(child) is None)


def test_a_recycled_process_id_is_not_taken_for_ours(tmp_path: Path) -> None:
    """After a reboot or a long time the id may belong to somebody else."""
    process.write_record(tmp_path, "me", os.getpid())
    (record,) = process.read_records(tmp_path)
    assert process.is_alive(record)
    assert not process.is_alive(process.Record(name="me", pid=os.getpid(), birth="an-older-boot:1"))


def test_sweep_ends_what_outlived_its_supervisor(tmp_path: Path) -> None:
    """Filed or not: the mark in the environment finds it."""
    other = subprocess.Popen([sys.executable, "-c", FOREVER], env={MARK: STACK})
    try:
        process.sweep(STACK, tmp_path, wait_seconds=0.1)
        assert process.birth_of(other.pid) is None
    finally:
        other.kill()


def test_logs_are_kept_within_a_bound(tmp_path: Path) -> None:
    """Three older files and no more; the writer's file is emptied in place."""
    log = tmp_path / "x.log"
    for number in range(6):
        log.write_text(str(number) * 10, encoding="utf-8")
        inode = log.stat().st_ino
        supervisor.rotate(log, limit_bytes=10)
        assert (log.stat().st_size, log.stat().st_ino) == (0, inode)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert (tmp_path / "x.log.1").read_text(encoding="utf-8") == "5" * 10
