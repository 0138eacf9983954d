"""A run that ends before its last step: what it keeps, and what another attempt makes of it."""

import threading
from pathlib import Path
from typing import Any

from tests.support.training import a_plan, a_tiny_model, a_torch_model, attached, changed, some_rows
from trainer.domain.plan import TrainPlan, ValidationPlan
from trainer.pipe import CheckpointWritten, StepTaken
from trainer.training import run
from trainer.training.dataset import TrainingData
from trainer.training.model_cache import ModelCache

STEPS = 30
# No step is worth so much: the first validation after the best one is a stop.
HELD = ValidationPlan(
    holdout_ratio=0.2, dataset=None, every_steps=1, early_stop_patience=1,
    early_stop_min_delta=100.0,
)  # fmt: skip


class OnMerge:
    """A channel that keeps what is said, and asks for the end after so many steps."""

    def __init__(self, finish_after: int) -> None:
        self.said: list[Any] = []
        self.finish, self.running = threading.Event(), threading.Event()
        self.running.set()
        self._finish_after = finish_after

    def send(self, message: Any) -> None:
        self.said.append(message)
        if isinstance(message, StepTaken) and message.step == self._finish_after:
            self.finish.set()

    @property
    def steps(self) -> list[int]:
        return [message.step for message in self.said if isinstance(message, StepTaken)]

    @property
    def checkpoints(self) -> list[CheckpointWritten]:
        return [message for message in self.said if isinstance(message, CheckpointWritten)]


class NoSamples:
    """A sampler that asks for nothing."""

    def after_checkpoint(self, step: int, **_: Any) -> tuple[()]:
        return ()


def attempt(plan: TrainPlan, *, finish_after: int = 0) -> OnMerge:
    """An attempt of a run on tiny weights, up to where the adapter would be delivered."""
    told = OnMerge(finish_after)
    parts: Any = (None, None)
    data = TrainingData(
        rows=some_rows(20), validation_rows=(), tokenizer=parts[0], template=parts[1], prompts=()
    )
    channel: Any = told
    sampler: Any = NoSamples()
    model = a_torch_model(attached(a_tiny_model(), plan))
    _, _, done, _ = run._train(model, plan, data, channel, ModelCache(), sampler)
    assert done == (told.steps or [done])[-1]
    return told


def a_run(folder: Path, **changes: Any) -> TrainPlan:
    """Of many steps, which keeps no checkpoint by itself."""
    return a_plan(max_steps=STEPS, checkpoint_every_steps=STEPS, work_folder=str(folder), **changes)


def test_a_run_that_had_stopped_early_takes_no_step_when_it_resumes(tmp_path: Path) -> None:
    """002-12, 002-14: the node was lost after its last step, before the adapter was stored."""
    plan = a_run(tmp_path / "first", validation=HELD)
    first = attempt(plan)
    assert first.steps == [1, 2]
    assert first.checkpoints[-1].step == 2
    folder = first.checkpoints[-1].folder
    again = attempt(changed(plan, checkpoint_folder=folder, work_folder=str(tmp_path / "second")))
    assert again.steps == []


def test_a_run_that_is_stopped_keeps_the_step_it_was_stopped_after(tmp_path: Path) -> None:
    """002-12: between two checkpoints; another attempt would go on behind it."""
    plan = a_run(tmp_path / "first")
    first = attempt(plan, finish_after=3)
    assert first.steps == [1, 2, 3]
    assert [written.step for written in first.checkpoints] == [3]
    folder = first.checkpoints[-1].folder
    again = attempt(
        changed(plan, checkpoint_folder=folder, work_folder=str(tmp_path / "second")),
        finish_after=4,
    )
    assert again.steps == [4]
