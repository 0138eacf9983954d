"""What holds for every child process of the platform, whoever starts it and whatever it does."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from chassis.child import process
from lexicon.faults import FaultCode
from tests.support.children import MODULES, USERS, outcome
from tests.support.odd_child import LAST_WORDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")

GONE_SECONDS = 10.0
# Enough for a child to begin on a busy machine; one that says nothing may as well not have begun.
SHORT_SECONDS = 0.5
SECRET = "the-secret-of-the-parent"

LOST = {
    "trainer": FaultCode.RUNTIME_WORKER_LOST,
    "exporter": FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
    "hub": FaultCode.DEP_SERVICE_UNAVAILABLE,
    # It failed on the rows; nobody else does.
    "validator": FaultCode.MODEL_CHAT_TEMPLATE_INVALID,
}
# Ends that come from outside speak neither for a template nor against it.
NOBODYS = LOST | {"validator": FaultCode.DEP_SERVICE_UNAVAILABLE}
OF_MEMORY = NOBODYS | {"trainer": FaultCode.RUNTIME_GPU_OOM}
STUCK = NOBODYS | {"trainer": FaultCode.RUNTIME_PROCESS_STUCK}


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """After each test: no child, none of its own children, and no entry that nobody looked at."""
    yield
    with suppress(FileNotFoundError):
        child, below = map(int, (tmp_path / "pids").read_text().split())
        assert not Path(f"/proc/{child}").exists()
        require_gone(below)


def require_gone(pid: int) -> None:
    """It ends in a moment; whoever has adopted it may not have looked yet."""
    deadline = time.monotonic() + GONE_SECONDS
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} is still there"
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("deed", "codes", "cause"),
    [
        ("exit", LOST, "exited"),
        ("kill", NOBODYS, "signalled"),
        ("half", NOBODYS, "signalled"),
        ("garbage", LOST, "ended"),
        ("long", LOST, "ended"),
    ],
)
async def test_whatever_a_child_does_its_user_gets_a_fault_with_its_last_words(
    user: str, tmp_path: Path, deed: str, codes: dict[str, FaultCode], cause: str
) -> None:
    fault = await outcome(user, tmp_path, deed)
    assert fault.code is codes[user]
    if fault.metadata:
        assert fault.metadata["end"] == cause
        assert LAST_WORDS in fault.metadata["output"]
        assert fault.metadata["exit_code"] == ("3" if deed == "exit" else "-9")


@pytest.mark.parametrize("deed", ["silence", "stop"])
async def test_a_child_that_is_silent_or_stopped_ends_within_its_bound(
    user: str, tmp_path: Path, deed: str
) -> None:
    async with asyncio.timeout(GONE_SECONDS):
        fault = await outcome(user, tmp_path, deed, seconds=SHORT_SECONDS)
    assert fault.code is NOBODYS[user]
    assert fault.metadata.get("end", "deadline") == "deadline"


async def test_a_child_that_the_kernel_killed_for_memory_is_told_so(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 1\noom_kill 7\n")
    monkeypatch.setattr(process, "KERNEL_COUNTERS", counters)
    fault = await outcome(user, tmp_path, "memory")
    assert fault.code is OF_MEMORY[user]
    assert "memory" in fault.message
    assert fault.metadata.get("end", "out_of_memory") == "out_of_memory"


class Unkillable(subprocess.Popen[bytes]):
    """A process that no signal of its parent reaches, as one that hangs in a driver."""

    all: "list[Unkillable]" = []  # noqa: RUF012 - of one test at a time

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[call-overload]
        self.real_pid, self.pid = self.pid, 1 << 30
        self.all.append(self)

    def poll(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("", timeout or 0.0)

    def let_go(self) -> None:
        os.killpg(self.real_pid, signal.SIGKILL)
        self.pid = self.real_pid
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


async def test_a_child_that_cannot_be_ended_is_told_so(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it for ever, and nobody is told of a wait that took too long."""
    monkeypatch.setattr(subprocess, "Popen", Unkillable)
    try:
        fault = await outcome(user, tmp_path, "silence", seconds=SHORT_SECONDS)
    finally:
        for hanging in Unkillable.all:
            hanging.let_go()
        Unkillable.all.clear()
    assert fault.code is STUCK[user]
    assert fault.metadata.get("end", "stuck") == "stuck"


@pytest.mark.parametrize("is_real", [False, True])
async def test_a_child_holds_no_secret_and_its_death_is_a_fault(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_real: bool
) -> None:
    """attacks 16: what parses strangers' files has no token, no key and no address."""
    for name in (
        "TUNESMITH_NODE_TOKEN", "TUNESMITH_SIGNING_KEY", "TUNESMITH_DATABASE_URL", "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "GITHUB_TOKEN", "WANDB_API_KEY",
    ):  # fmt: skip
        monkeypatch.setenv(name, SECRET)
    module = MODULES[user] if is_real else ""
    told = asyncio.create_task(outcome(user, tmp_path, "silence", module=module))
    # Between fork and exec a process has no command line.
    while not (children := [each for each in psutil.Process().children() if each.cmdline()]):
        await asyncio.sleep(0.005)
    (child,) = children
    assert (module or "odd_child") in " ".join(child.cmdline())
    environment = child.environ()
    child.kill()
    assert (await told).code is NOBODYS[user]
    assert SECRET not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert not child.is_running()


async def test_a_child_ends_with_its_parent(user: str, tmp_path: Path) -> None:
    """Nobody is left to end it: it finds that nobody asks any more, and takes its own along."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.children", user, str(tmp_path), "silence"
    )
    async with asyncio.timeout(60):
        while not (tmp_path / "pids").exists():
            await asyncio.sleep(0.02)
    parent.kill()
    await parent.wait()
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        await asyncio.to_thread(require_gone, pid)
    (tmp_path / "pids").unlink()
