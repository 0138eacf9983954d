"""Checkpoints that a thread writes: snapshots stand still, one after another, faults are told."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lexicon.faults import Fault, FaultCode
from tests.support.borrowing import Borrowing
from tests.support.training import a_plan
from tests.unit.trainer.test_checkpoint import PROGRESS
from trainer.pipe import CheckpointWritten, Warned
from trainer.training import checkpoint
from trainer.training.run import checkpoint_writer
from trainer.training.snapshot import Snapshot
from trainer.training.writer import CheckpointWriter

EVERY_KIND = {
    "f64": torch.tensor(1.5, dtype=torch.float64),
    "f32": torch.arange(12.0).reshape(3, 4).T,
    "bf16": torch.arange(3.0, dtype=torch.bfloat16),
    "f16": torch.arange(5.0, dtype=torch.float16),
    "u8": torch.arange(7, dtype=torch.uint8),
    "i64": torch.tensor([2**40]),
    "none": torch.empty(0),
}


class OnMerge:
    """Keeps what a writer tells."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.folders: list[Path] = []
        self.faults: list[Fault] = []

    def writer(self, root: Path) -> CheckpointWriter:
        return CheckpointWriter(root, written=self._written, failed=self.faults.append)

    def _written(self, step: int, folder: Path) -> None:
        self.written.append(step)
        self.folders.append(folder)


def at(step: int) -> checkpoint.TrainingProgress:
    return replace(PROGRESS, step=step)


def read(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder, run=PROGRESS.run, fingerprint="f")[1]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def content(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return load(b"".join(bytes(part) for part in snapshot.parts()))


def test_snapshot_is_a_safetensors_file_of_any_kind_of_number() -> None:
    snapshot = Snapshot()
    fixed = {f"best/{name}": tensor for name, tensor in EVERY_KIND.items()}
    snapshot.take(EVERY_KIND, fixed)
    assert same(content(snapshot), EVERY_KIND | fixed)


def test_snapshot_keeps_its_room_and_takes_the_latest_numbers() -> None:
    live, snapshot = {"a": torch.zeros(4), "b": torch.zeros(2, dtype=torch.uint8)}, Snapshot()
    snapshot.take(live, {})
    places = [part.obj for part in snapshot.parts()[1:]]
    live["a"].fill_(1.0)
    assert not content(snapshot)["a"].any()
    snapshot.take(live, {"best/a": torch.full((4,), 2.0)})
    assert same(content(snapshot), live | {"best/a": torch.full((4,), 2.0)})
    assert snapshot.parts()[1].obj.ctypes.data == places[0].ctypes.data  # type: ignore[attr-defined]


def test_what_training_does_next_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    """002-12"""
    told, weight = OnMerge(), torch.ones(1000)
    with told.writer(tmp_path) as writer:
        for step in (1, 2, 3):
            owner = Borrowing({"weight/a": weight})
            writer.save(at(step), owner, {})
            owner.before_change()
            weight.add_(1.0)
    assert told.written == [1, 2, 3]
    assert [read(folder)["weight/a"][0].item() for folder in told.folders] == [1.0, 2.0, 3.0]


def test_a_checkpoint_is_durable_before_the_next_snapshot_is_taken(tmp_path: Path) -> None:
    told = OnMerge()
    with told.writer(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.save(at(step), Borrowing({"weight/a": torch.ones(1000)}), {})
            assert told.written[: step - 1] == list(range(1, step))


def test_the_last_one_is_waited_for_even_when_training_fails(tmp_path: Path) -> None:
    told = OnMerge()

    def train() -> None:
        with told.writer(tmp_path) as writer:
            writer.save(at(1), Borrowing({"weight/a": torch.ones(10)}), {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert told.written == [1]


def test_full_disk_is_told_with_its_cause_and_the_next_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-11"""
    told, live = OnMerge(), {"weight/a": torch.ones(10)}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with told.writer(tmp_path) as writer:
        writer.save(at(1), Borrowing(live), {})
        writer.wait()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            writer.save(at(2), Borrowing(live), {})
            writer.wait()
        writer.save(at(3), Borrowing(live), {})
    (fault,) = told.faults
    assert fault.code is FaultCode.STATE_CHECKPOINT_INVALID
    assert "the disk is full" in fault.message
    assert told.written == [1, 3]
    assert all(same(read(folder), live) for folder in told.folders)


def test_want_of_memory_costs_the_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    told = OnMerge()
    too_large = torch.empty(1 << 50, dtype=torch.uint8, device="meta")
    with told.writer(tmp_path) as writer:
        writer.save(at(1), Borrowing({"weight/a": too_large}), {})
        writer.save(at(2), Borrowing({"weight/a": torch.ones(3)}), {})
    assert [fault.code for fault in told.faults] == [FaultCode.STATE_CHECKPOINT_INVALID]
    assert told.written == [2]


class FakeChannel:
    """Keeps what is sent to the agent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def sent_by_a_run_in(folder: Path) -> list[Any]:
    channel = FakeChannel()
    plan = a_plan(work_folder=str(folder))
    with checkpoint_writer(plan.places, channel) as writer:  # type: ignore[arg-type]
        writer.save(at(1), Borrowing({"weight/a": torch.ones(3)}), {})
    return channel.sent


def test_the_agent_is_told_of_a_checkpoint_when_it_is_whole(tmp_path: Path) -> None:
    (message,) = sent_by_a_run_in(tmp_path)
    assert isinstance(message, CheckpointWritten)
    assert same(read(Path(message.folder)), {"weight/a": torch.ones(3)})


def test_the_user_is_warned_of_a_checkpoint_that_the_disk_refuses(tmp_path: Path) -> None:
    """002-11"""
    (tmp_path / "checkpoints").write_text("in the way")
    (message,) = sent_by_a_run_in(tmp_path)
    assert isinstance(message, Warned)
    assert message.code == "STATE_CHECKPOINT_INVALID"
    assert "The checkpoint of step 1 could not be written" in message.message
