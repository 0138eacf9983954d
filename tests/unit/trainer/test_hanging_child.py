"""A training process that no signal ends: no other is started beside it, whoever its agent was."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from tests.support.child_lines import FakeHandle, a_process
from tests.support.training import a_plan
from trainer.child import Child
from trainer.claim import Claim
from trainer.config import Config
from trainer.pipe import Terms, UnslothFailed, from_child
from trainer.worker import Trainer


def a_hanging_child(*said: Any) -> tuple[Child, FakeHandle]:
    process, handle = a_process(from_child, *said)
    return Child(process, Terms()), handle


def a_config(work_dir: Path) -> Config:
    return Config(
        scheduler_addr="127.0.0.1:1",
        node_token="t",
        node_name="n",
        work_dir=work_dir,
        model_cache=work_dir / "cache",
    )


async def test_a_child_that_cannot_be_ended_says_so_and_nobody_listens_for_ever() -> None:
    child, _ = a_hanging_child()
    listening = asyncio.create_task(child.receive())
    await asyncio.sleep(0)
    with pytest.raises(Fault) as killed:
        await child.kill()
    assert killed.value.code is FaultCode.RUNTIME_PROCESS_STUCK
    with pytest.raises(Fault) as heard:
        await listening
    assert heard.value.code is FaultCode.RUNTIME_PROCESS_STUCK
    assert child.is_stuck


async def test_no_second_child_is_started_beside_one_that_hangs(tmp_path: Path) -> None:
    """Two processes could hold the device; the node takes no work until the first has ended."""
    trainer, (child, handle) = Trainer(a_config(tmp_path)), a_hanging_child()
    trainer._child = child
    assert not trainer.unfit_reason
    await trainer.close()
    assert str(handle.pid) in trainer.unfit_reason
    with pytest.raises(Fault) as caught:
        await trainer._ready_child()
    assert caught.value.code is FaultCode.RUNTIME_PROCESS_STUCK
    handle.let_go()
    assert not trainer.unfit_reason
    await trainer.close()
    assert trainer._child is None


class Ending(FakeHandle):
    """A process that ends when it is let go, and not before somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for, self.may_end = threading.Event(), threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        self.is_waited_for.set()
        assert self.may_end.wait(5)
        self.exit_code = -9
        return self.exit_code


async def test_a_child_that_was_ended_gets_no_successor(tmp_path: Path) -> None:
    """002-24: the run was aborted while the process that Unsloth had spoiled came to its end."""
    handle, log_path = Ending(), tmp_path / "successor.log"
    process, _ = a_process(from_child, UnslothFailed(cause="no accelerator"), handle=handle)
    child = Child(process, Terms())
    said = child.train(a_plan(log_path=str(log_path)))
    training = asyncio.ensure_future(anext(said))
    assert await asyncio.to_thread(handle.is_waited_for.wait, 5)
    killing = asyncio.create_task(child.kill())
    await asyncio.sleep(0)
    handle.may_end.set()
    await killing
    with pytest.raises(Fault) as caught:
        await training
    assert caught.value.code is FaultCode.RUNTIME_WORKER_LOST
    assert not log_path.exists()


async def test_an_agent_that_is_started_anew_waits_for_a_process_that_hangs(
    tmp_path: Path,
) -> None:
    """003-18: a process of the agent before it may hold the device; no run is begun beside it."""
    before = Claim(tmp_path)
    assert before.take()
    hanging = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, pass_fds=before.descriptors
    )
    before.drop()
    trainer = Trainer(a_config(tmp_path))
    assert "of an earlier agent" in trainer.unfit_reason
    assert not await Claim(tmp_path).wait(seconds=0)
    hanging.kill()
    await hanging.wait()
    assert await Claim(tmp_path).wait(seconds=5)
    assert trainer.unfit_reason == ""
    await trainer.close()
