"""Checkpoints of weights that live on a real card: the copy stands between two updates."""

from pathlib import Path

import pytest
import torch

from tests.support.borrowing import Borrowing
from tests.unit.trainer.test_checkpoint import PROGRESS
from trainer.training import checkpoint
from trainer.training.writer import CheckpointWriter

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

# Enough work that the card is far behind the host whenever a checkpoint is lent.
SIDE, PRODUCTS, STEPS = 4096, 40, 8


def test_a_checkpoint_holds_what_the_queued_update_gives_and_nothing_of_the_next(
    cuda: torch.device, tmp_path: Path
) -> None:
    """002-12: the update before it is still queued when the weights are lent."""
    weight = torch.zeros(SIDE, SIDE, device=cuda)
    work = torch.eye(SIDE, device=cuda)
    owner, folders = Borrowing({"weight/a": weight}), dict[int, Path]()

    def refuse(fault: Exception) -> None:
        raise fault

    with CheckpointWriter(tmp_path, written=folders.__setitem__, failed=refuse) as writer:
        for step in range(1, STEPS + 1):
            for _ in range(PRODUCTS):
                work = work @ work
            owner.before_change()
            weight.add_(work.diagonal().mean())
            progress = checkpoint.TrainingProgress(
                run=PROGRESS.run,
                attempt=1,
                fencing_epoch=1,
                step=step,
                fingerprint="f",
                micro_batch_size=1,
                trained_token_count=0,
            )
            writer.save(progress, owner, {})
    for step in range(1, STEPS + 1):
        _, tensors = checkpoint.read(folders[step], run=PROGRESS.run, fingerprint="f")
        found = tensors["weight/a"]
        assert found.min() == found.max() == step
