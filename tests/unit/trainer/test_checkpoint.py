"""Checkpoints exist whole or not at all, and are only loaded when every byte is right."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexicon.faults import Fault, FaultCode
from trainer.training import checkpoint

TENSORS = {"weight/a": torch.arange(6.0).reshape(2, 3), "exp_avg/a": torch.ones(2, 3)}
PROGRESS = checkpoint.TrainingProgress(
    run="projects/p/runs/r",
    attempt=1,
    fencing_epoch=3,
    step=7,
    fingerprint="f",
    micro_batch_size=2,
    trained_token_count=99,
)


def write(root: Path, step: int = 7) -> Path:
    return checkpoint.write(root, replace(PROGRESS, step=step), TENSORS)


def refused(folder: Path, *, run: str = PROGRESS.run, fingerprint: str = "f") -> bool:
    with pytest.raises(Fault) as caught:
        checkpoint.read(folder, run=run, fingerprint=fingerprint)
    return caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    progress, tensors = checkpoint.read(write(tmp_path), run=PROGRESS.run, fingerprint="f")
    assert progress == PROGRESS
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_manifest_names_the_run(tmp_path: Path) -> None:
    """002-34"""
    manifest = json.loads((write(tmp_path) / "manifest.json").read_text())
    assert manifest["progress"]["run"] == PROGRESS.run


def test_interrupted_write_leaves_a_partial_and_the_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-12, 002-13: what a kill between two files leaves behind is swept away."""
    good = write(tmp_path, step=1)

    class Killed(BaseException):
        pass

    def die(_: int) -> None:
        raise Killed

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(Killed):
        write(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000001",
        "step-00000002.partial",
    ]
    assert checkpoint.remove_partials(tmp_path) == 1
    checkpoint.read(good, run=PROGRESS.run, fingerprint="f")


def test_full_disk_keeps_the_last_good_one_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-11"""
    good = write(tmp_path, step=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Fault) as caught:
        write(tmp_path, step=2)
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
    assert "the disk is full" in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_manifest_keeps_the_keys_of_its_format(tmp_path: Path) -> None:
    """Checkpoints outlive releases: a key is the format's, whatever the attribute is called."""
    folder = checkpoint.write(tmp_path, replace(PROGRESS, continual_schedule={"runs": 2}), TENSORS)
    written = json.loads((folder / checkpoint.MANIFEST_NAME).read_text())["progress"]
    assert written["course"] == {"runs": 2}
    assert "continual_schedule" not in written
    found, _ = checkpoint.read(folder, run=PROGRESS.run, fingerprint=PROGRESS.fingerprint)
    assert found.continual_schedule == {"runs": 2}


@pytest.mark.parametrize("name", checkpoint.FILE_NAMES)
def test_flipped_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert refused(path.parent)


@pytest.mark.parametrize("name", checkpoint.FILE_NAMES)
def test_cut_file_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(path.parent)


@pytest.mark.parametrize("name", checkpoint.FILE_NAMES)
def test_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    (folder / name).unlink()
    assert refused(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "training_args.bin"])
def test_foreign_file_is_refused(tmp_path: Path, name: str) -> None:
    """A pickle planted beside a checkpoint is not even looked at."""
    folder = write(tmp_path)
    (folder / name).write_bytes(b"\x80\x04.")
    assert refused(folder)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    assert refused(write(tmp_path), run="projects/p/runs/other")


def test_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    assert refused(write(tmp_path), fingerprint="g")


def test_same_step_can_be_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    checkpoint.read(write(tmp_path), run=PROGRESS.run, fingerprint="f")
