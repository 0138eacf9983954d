"""A checkpoint is copied behind training's back: nothing that is lent to it changes before then.

The writer's thread does its work here at the last moment at which somebody still waits for it. A
change of weights or moments that did not wait would be in the checkpoint, each time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexicon.faults import Fault
from modelspec.recipe import Optimizer
from tests.support.borrowing import AtTheLastMoment, Borrowing
from tests.support.training import a_plan, torch_model
from tests.unit.trainer.test_checkpoint import PROGRESS
from tests.unit.trainer.test_continual import Trial, a_multi_run
from trainer.domain.plan import TrainPlan, ValidationPlan
from trainer.domain.scaling import LossScale
from trainer.training import checkpoint, loop
from trainer.training.continual import MERGED_PREFIX, TUNED_PREFIX
from trainer.training.run import fingerprint, save_checkpoint
from trainer.training.validation import BEST_PREFIX
from trainer.training.writer import CheckpointWriter

Tensors = dict[str, torch.Tensor]
VALIDATION = ValidationPlan(
    holdout_ratio=0.1, dataset=None, every_steps=1, early_stop_patience=9, early_stop_min_delta=0.0
)


class Kept:
    """A run's checkpoints, all of them, beside what training held when each was taken."""

    def __init__(self, root: Path) -> None:
        self.thread = AtTheLastMoment()
        self.folders: dict[int, Path] = {}
        self.held: dict[int, Tensors] = {}
        self.faults: list[Fault] = []
        self.writer = CheckpointWriter(
            root, written=self._written, failed=self.faults.append, thread=self.thread
        )

    def save(self, trial: Trial) -> None:
        self.held[trial.state.step] = everything(trial)
        save_checkpoint(self.writer, trial.plan, trial.state, trial.continual_schedule)
        assert self.thread.is_behind

    def wrong(self, plan: TrainPlan) -> list[int]:
        """Steps whose checkpoint is not what training held."""
        return [step for step, held in self.held.items() if not same(self._read(step, plan), held)]

    def _read(self, step: int, plan: TrainPlan) -> Tensors:
        folder = self.folders[step]
        return checkpoint.read(folder, run=plan.attempt.run, fingerprint=fingerprint(plan))[1]

    def _written(self, step: int, folder: Path) -> None:
        self.folders[step] = folder


def everything(trial: Trial) -> Tensors:
    """What a checkpoint holds, copied at once."""
    beside = {**trial.continual_schedule.validation.tensors(), **trial.continual_schedule.tensors()}
    return loop.capture(trial.state) | {name: tensor.clone() for name, tensor in beside.items()}


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def train(trial: Trial, kept: Kept) -> None:
    """Train to the end with a checkpoint after every step."""
    with kept.writer:
        while trial.state.step < trial.continual_schedule.steps:
            trial.train(until=trial.state.step + 1)
            kept.save(trial)
        trial.continual_schedule.finish(trial.state)


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_TORCH, Optimizer.ADAMW_8BIT])
def test_every_checkpoint_is_the_state_at_its_step(tmp_path: Path, optimizer: Optimizer) -> None:
    """002-12: for moments of 32 and of 8 bits"""
    trial, kept = Trial(a_plan(max_steps=12, optimizer=optimizer)), Kept(tmp_path)
    train(trial, kept)
    assert len(kept.folders) == 12
    assert kept.wrong(trial.plan) == []


def test_merges_between_runs_wait_for_the_copy(tmp_path: Path) -> None:
    """002-12, 002-22: a merge puts other weights into the model and begins a new optimizer"""
    trial, kept = Trial(a_multi_run(tmp_path, run_count=4)), Kept(tmp_path / "checkpoints")
    train(trial, kept)
    assert len(kept.folders) == 8
    assert kept.wrong(trial.plan) == []
    assert {TUNED_PREFIX, MERGED_PREFIX} <= {name.split("/")[0] + "/" for name in kept.held[8]}


def test_promoting_the_best_weights_waits_for_the_copy(tmp_path: Path) -> None:
    """002-12: the last checkpoint holds the last weights, and the user gets the best ones"""
    plan = a_plan(max_steps=6, lr_peak=0.5, validation=VALIDATION)
    trial, kept = Trial(plan), Kept(tmp_path)
    train(trial, kept)
    assert trial.continual_schedule.validation.without_gain_count > 0
    assert kept.wrong(plan) == []
    best = {
        name: kept.held[6][f"{BEST_PREFIX}{name}"] for name in torch_model(trial.state).trainable
    }
    assert same(trial.weights(), best)


def test_steps_that_overflow_wait_as_soon_as_something_changes(tmp_path: Path) -> None:
    """002-12: a skipped step changes no weight, and the loss scale of a checkpoint is its own"""
    trial, kept = Trial(a_plan(max_steps=4)), Kept(tmp_path)
    trial.state.loss_scale = LossScale(factor=1e40)
    train(trial, kept)
    factors = [held[loop.LOSS_SCALE_KEY][0].item() for held in kept.held.values()]
    assert len(set(factors)) > 1
    assert trial.state.skipped_count > 0
    assert kept.wrong(trial.plan) == []


def put_initial(trial: Trial) -> None:
    loop.put(trial.state, {name: torch.zeros_like(t) for name, t in trial.weights().items()})


def restore_zero(trial: Trial) -> None:
    held = loop.capture(trial.state)
    loop.restore(trial.state, {name: torch.zeros_like(tensor) for name, tensor in held.items()})


def begin_again(trial: Trial) -> None:
    loop.begin_again(trial.state)


def update(trial: Trial) -> None:
    for parameter in torch_model(trial.state).trainable.values():
        parameter.grad = torch.ones_like(parameter)
    loop.update(trial.state, lr=0.1)


@pytest.mark.parametrize("change", [put_initial, restore_zero, begin_again, update])
def test_whatever_changes_weights_or_moments_waits_for_the_copy(
    tmp_path: Path, change: Callable[[Trial], None]
) -> None:
    trial, kept = Trial(a_plan(max_steps=2)), Kept(tmp_path)
    with kept.writer:
        trial.train(until=1)
        kept.save(trial)
        change(trial)
    assert kept.wrong(trial.plan) == []


def test_out_of_memory_in_the_next_step_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    """002-02, 002-12: healing frees gradients and takes the step again; nothing lent is touched"""
    trial, kept = Trial(a_plan(max_steps=3, micro_batch_size=4)), Kept(tmp_path)
    failures = iter([True, False])

    def fail_once(*_: Any) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with kept.writer:
        trial.train(until=1)
        kept.save(trial)
        hook = next(iter(torch_model(trial.state).trainable.values())).register_hook(fail_once)
        trial.train(until=2)
        hook.remove()
        kept.save(trial)
    assert trial.state.recovery.micro_batch_size < 4
    assert kept.wrong(trial.plan) == []


def test_a_change_that_did_not_wait_is_noticed_and_its_checkpoint_not_written(
    tmp_path: Path,
) -> None:
    """What the rule above forbids, done on purpose."""
    kept, weight = Kept(tmp_path), torch.ones(3)
    kept.writer.save(replace(PROGRESS, step=1), Borrowing({"weight/a": weight}), {})
    weight.add_(1.0)
    with pytest.raises(AssertionError, match="while they were borrowed"):
        kept.writer.wait()
    kept.writer.save(replace(PROGRESS, step=2), Borrowing({"weight/a": weight}), {})
    kept.writer.wait()
    assert list(kept.folders) == [2]


def test_what_the_thread_did_not_expect_reaches_training_once(tmp_path: Path) -> None:
    def unforeseen(_: int, __: Path) -> None:
        raise ZeroDivisionError

    writer = CheckpointWriter(tmp_path, written=unforeseen, failed=lambda _: None)
    writer.save(PROGRESS, Borrowing({"weight/a": torch.ones(3)}), {})
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    with writer:
        pass


def test_the_lender_waits_for_the_copy_and_not_for_the_disk(tmp_path: Path) -> None:
    """The step after a checkpoint goes on while the checkpoint is written."""
    thread, owner, written = AtTheLastMoment(), Borrowing({"weight/a": torch.ones(3)}), list[int]()
    writer = CheckpointWriter(
        tmp_path, written=lambda step, _: written.append(step), failed=print, thread=thread
    )
    with writer:
        writer.save(PROGRESS, owner, {})
        owner.before_change()
        owner.tensors["weight/a"].zero_()
        assert written == []
    assert written == [PROGRESS.step]
    folder = tmp_path / f"step-{PROGRESS.step:08d}"
    _, tensors = checkpoint.read(folder, run=PROGRESS.run, fingerprint=PROGRESS.fingerprint)
    assert tensors["weight/a"].tolist() == [1.0, 1.0, 1.0]


def test_many_steps_with_a_real_thread_are_the_same(tmp_path: Path) -> None:
    """002-12: the thread of production, as fast as it is"""
    trial, kept = Trial(a_plan(max_steps=30)), Kept(tmp_path)
    folders: dict[int, Path] = {}
    with CheckpointWriter(
        tmp_path,
        written=folders.__setitem__,
        failed=kept.faults.append,
        thread=ThreadPoolExecutor(1),
    ) as writer:
        while trial.state.step < 30:
            trial.train(until=trial.state.step + 1)
            kept.held[trial.state.step] = everything(trial)
            save_checkpoint(writer, trial.plan, trial.state, trial.continual_schedule)
    kept.folders = folders
    assert len(folders) == 30
    assert kept.wrong(trial.plan) == []
