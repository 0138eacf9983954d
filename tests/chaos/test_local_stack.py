"""The whole local stack: two of them, killed from above and below, started twice at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.local import layout as layouts
from deploy.local import postgres, process

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

COMMAND_SECONDS = 300
SETTLE_SECONDS = 60.0
# Six questions without an answer, each with its deadline, and the start of who must wait for it.
HANG_SECONDS = 150.0
PROCESSES = 9


def tunesmith(state: Path, *words: str) -> dict[str, Any]:
    """Run a command of the CLI and return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", words[0], "--state", str(state), *words[1:], "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def balance(state: Path) -> str:
    """What the local project owns, in micro-credits."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "billing", "balance", "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=True,
        env={**os.environ, "TUNESMITH_CREDENTIALS": str(state / "credentials.json")},
    )
    return str(json.loads(done.stdout)["available"]["amount_micros"])


def until(holds: Callable[[], bool], *, seconds: float = SETTLE_SECONDS) -> None:
    """Wait, bounded, for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder whose stack is brought down, and its data removed, after the test."""
    folder = tmp_path / "a state"
    yield folder
    remove(folder)


def remove(folder: Path) -> None:
    """Bring a stack down and remove what it keeps outside its folder."""
    tunesmith(folder, "down")
    layout = layouts.open_layout(folder)
    assert not process.marked(layout.stack_id)
    postgres.forget(layout)


def test_two_stacks_run_side_by_side_and_share_nothing(state: Path, tmp_path: Path) -> None:
    """Own folder, own ports, own processes; ending one leaves the other alone."""
    other = tmp_path / "another"
    try:
        first, second = tunesmith(state, "up"), tunesmith(other, "up")
        assert first["ready"]
        assert second["ready"]
        ports = [entry["port"] for stack in (first, second) for entry in stack["processes"]]
        assert len(set(ports)) == 2 * PROCESSES
        tunesmith(state, "down")
        assert tunesmith(other, "status")["ready"]
        assert balance(other) == "100000000"
    finally:
        remove(other)


def test_nothing_outlives_a_killed_supervisor_and_the_next_start_finds_everything(
    state: Path,
) -> None:
    """kill -9 of the supervisor: no process is left, no credit is lost or granted twice."""
    running = tunesmith(state, "up")
    stack_id = layouts.open_layout(state).stack_id
    assert len(process.marked(stack_id)) >= PROCESSES
    os.kill(running["supervisor_pid"], signal.SIGKILL)
    until(lambda: not process.marked(stack_id))
    assert not tunesmith(state, "status")["running"]
    again = tunesmith(state, "up")
    assert again["ready"]
    assert [entry["port"] for entry in again["processes"]] == [
        entry["port"] for entry in running["processes"]
    ]
    assert balance(state) == "100000000"


def test_every_process_that_is_killed_comes_back(state: Path) -> None:
    """All nine at once: Postgres, nats-server and the seven services."""
    running = tunesmith(state, "up")
    for entry in running["processes"]:
        os.kill(entry["pid"], signal.SIGKILL)

    def all_back() -> bool:
        now = tunesmith(state, "status")["processes"]
        return all(entry["state"] == "ready" and entry["restarts"] >= 1 for entry in now)

    until(all_back)
    assert balance(state) == "100000000"


def test_what_hangs_is_started_again(state: Path) -> None:
    """SIGSTOP: the process is there, holds its port and answers nobody; the stack heals itself."""
    running = tunesmith(state, "up")
    hung = {entry["name"]: entry["pid"] for entry in running["processes"]
            if entry["name"] in {"hub", "trainer", "nats-server", "postgres"}}  # fmt: skip
    assert len(hung) == 4
    for pid in hung.values():
        os.kill(pid, signal.SIGSTOP)

    def all_back() -> bool:
        now = {entry["name"]: entry for entry in tunesmith(state, "status")["processes"]}
        return all(
            now[name]["state"] == "ready" and now[name]["pid"] != pid for name, pid in hung.items()
        )

    until(all_back, seconds=HANG_SECONDS)
    assert balance(state) == "100000000"


def test_two_starts_at_once_make_one_stack(state: Path) -> None:
    """Both commands succeed and describe the same processes."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        one, two = pool.map(lambda _: tunesmith(state, "up"), range(2))
    assert one["ready"]
    assert two["ready"]
    assert one["supervisor_pid"] == two["supervisor_pid"]
    assert len(process.marked(layouts.open_layout(state).stack_id)) >= PROCESSES
