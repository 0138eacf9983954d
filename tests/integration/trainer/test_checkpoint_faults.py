"""Every call by which a checkpoint asks the disk for something is refused once, for real."""

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lexicon.faults import Fault, FaultCode
from tests.support.fresh import in_fresh_process
from tests.support.ptrace import CAN_FAIL_CALLS, fail_call
from tests.unit.trainer.test_checkpoint import PROGRESS
from trainer.training import checkpoint

TENSORS = {"weight/a": torch.arange(3 * 2**18, dtype=torch.float32)}
# Folder, two files, three pieces and the manifest, two files and two folders flushed, the rename.
CALLS_MIN = 11
CALLS_MAX = 40

pytestmark = pytest.mark.integration


def at(step: int) -> checkpoint.TrainingProgress:
    return replace(PROGRESS, step=step)


def refused(root: Path, words: str) -> None:
    """Write a checkpoint, which must be refused with the cause."""
    with pytest.raises(Fault) as caught:
        checkpoint.write(root, at(2), TENSORS)
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
    assert words in caught.value.message


@pytest.mark.skipif(not CAN_FAIL_CALLS, reason="calls are failed by ptrace on x86-64 Linux")
@pytest.mark.parametrize(
    ("error", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")]
)
def test_every_refused_call_leaves_the_good_checkpoint_and_nothing_half(
    tmp_path: Path, error: int, words: str
) -> None:
    """002-11, 002-12: ENOSPC and EIO at every call; the next write goes well."""
    calls = in_fresh_process(refuse_each_call, tmp_path, error, words)
    assert CALLS_MIN < calls < CALLS_MAX - 1


def refuse_each_call(folder: Path, error: int, words: str) -> int:
    """How many calls a checkpoint's writing has; each is refused, and what is left looked at."""
    # The first call makes the folder of all checkpoints, which is there already.
    for number in range(2, CALLS_MAX):
        root = folder / str(number)
        good = checkpoint.write(root, at(1), TENSORS)
        try:
            fail_call(partial(refused, root, words), number, error)
        except RuntimeError:
            # The child was not refused: only because its last call was behind it.
            assert len(list(root.iterdir())) == 2
            break
        left = {path.name for path in root.iterdir()}
        assert good.name in left
        assert left <= {good.name, "step-00000002"}
        for name in left:
            checkpoint.read(root / name, run=PROGRESS.run, fingerprint="f")
        checkpoint.write(root, at(3), TENSORS)
    return number


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    """002-11, 002-13: with room again, the next checkpoint is written and the rest swept away."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=8m tmpfs {disk} 2>/dev/null"):  # noqa: S605 - our path
        pytest.skip("mounting is not allowed here")
    try:
        good = checkpoint.write(disk / "runs", at(1), TENSORS)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(4 * 2**20))
        with pytest.raises(Fault) as caught:
            checkpoint.write(disk / "runs", at(2), TENSORS)
        assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
        assert "the disk is full" in caught.value.message
        checkpoint.read(good, run=PROGRESS.run, fingerprint="f")
        ballast.unlink()
        checkpoint.write(disk / "runs", at(2), TENSORS)
        assert len(list((disk / "runs").iterdir())) == 2
    finally:
        os.system(f"umount {disk}")  # noqa: S605 - our path
