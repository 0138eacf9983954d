"""Kills between two runs of a continual training: a part of `python -m tests.chaos.resume`.

At its last step a run is judged and folded in, its adapter is kept on the disk, the next run is
opened, and the checkpoint of the step is written. The process is killed at every system-call
boundary of all that, for each merge; another process resumes on the same disk, with whatever lies
there. After every step it must hold what the uninterrupted training held after it: weights and
moments, the adapters of SLAO, the merge history, the loss, and the kept adapters' files.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from lexicon.faults import Fault, FaultCode
from tests.support.borrowing import AtTheLastMoment
from tests.support.forked import in_fork
from tests.support.ptrace import kill_at_boundary
from tests.support.training import a_plan, a_state, a_tiny_model, attached, changed, some_rows
from trainer.domain.plan import MultiRunPlan, ValidationPlan
from trainer.training import checkpoint, history, loop
from trainer.training.continual import ContinualSchedule
from trainer.training.run import resume, save_checkpoint
from trainer.training.validation import Validation
from trainer.training.writer import CheckpointWriter

RUN_COUNT, RUN_STEPS = 3, 3
MERGE_STEPS = tuple(RUN_STEPS * number for number in range(1, RUN_COUNT + 1))
BOUNDARIES_MAX = 5000
POOL, HELD = some_rows(40), some_rows(4, seed=9)
PLAN = a_plan(
    adapter_dropout=0.1,
    multi_run=MultiRunPlan(
        run_count=RUN_COUNT,
        samples_per_run=8,
        in_order=False,
        drift_minimum_cosine=-1.0,
        eval_maximum_regression=None,
    ),
    validation=ValidationPlan(
        holdout_ratio=0.1, dataset=None, every_steps=0, early_stop_patience=0,
        early_stop_min_delta=0.0,
    ),
    max_steps=RUN_STEPS,
    micro_batch_size=8,
    accumulation_steps=1,
    checkpoint_keep_count=2,
)  # fmt: skip


class Refused(Exception):
    """The training told its user of something, which none of these may have to."""


class Training:
    """The attempt of a continual training on a node whose disk is `work`; resumes what is there."""

    def __init__(self, work: Path) -> None:
        root = work / "checkpoints"
        checkpoint.remove_partials(root)
        newest = max(root.glob("step-*"), default=None)
        if (work / history.FOLDER_NAME).exists() and newest is not None:
            # The agent keeps the adapters beside the checkpoints.
            shutil.copytree(
                work / history.FOLDER_NAME, root / history.FOLDER_NAME, dirs_exist_ok=True
            )
        self._plan = changed(
            PLAN, work_folder=str(work), checkpoint_folder=str(newest) if newest else None
        )
        model = attached(a_tiny_model(), self._plan).train()
        self.state = a_state(model, self._plan)
        validation = Validation(plan=PLAN.data.validation, rows=HELD)
        self._continual_schedule = ContinualSchedule.of(
            self._plan.multi_run,
            POOL,
            validation,
            self.state,
            places=self._plan.places,
            warn=_refuse,
            on_merge=lambda *_: None,
        )
        channel: Any = self
        resume(self._plan, self.state, self._continual_schedule, channel)
        self._writer = CheckpointWriter(
            root, written=self._forget_older, failed=_raise, thread=AtTheLastMoment()
        )

    def send(self, message: msgspec.Struct) -> None:
        """What a resumed training tells its agent; here it has no reason to."""
        raise Refused(message)

    def take_step(self) -> loop.StepFigures:
        """The next optimizer step, without what follows it."""
        return loop.take_step(
            self.state,
            self._continual_schedule.rows_at(self.state.step),
            steps=self._continual_schedule.run_steps,
            healed=lambda _: None,
        )

    def close_step(self, figures: loop.StepFigures) -> None:
        """What follows a step: the merge when its run is over, and the checkpoint, in this thread.

        The writer of production, whose thread does its work where it is waited for.
        """
        self._continual_schedule.after_step(self.state, figures)
        save_checkpoint(self._writer, self._plan, self.state, self._continual_schedule)
        self._writer.wait()

    def digest(self, figures: loop.StepFigures) -> str:
        """Hash of all that the training holds and has kept."""
        total = hashlib.sha256(repr(figures.loss).encode())
        for name, tensor in sorted(
            {**loop.capture(self.state), **self._continual_schedule.tensors()}.items()
        ):
            total.update(name.encode() + tensor.numpy().tobytes())
        total.update(msgspec.json.encode(self._continual_schedule.progress))
        for record in self._continual_schedule.progress.history:
            path = history.file_of(self._plan.places, record)
            assert path is not None
            total.update(path.read_bytes())
        return total.hexdigest()

    def _forget_older(self, _: int, newest: Path) -> None:
        for older in sorted(newest.parent.glob("step-*[0-9]"))[: -PLAN.checkpoints.keep_count]:
            shutil.rmtree(older)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Where a training began, and its digest after each step that it took."""

    from_step: int
    digests: tuple[str, ...]


def trial(
    folder: Path,
    say: Callable[[str], None],
    *,
    merge_steps: tuple[int, ...] = MERGE_STEPS,
    stride: int = 1,
) -> dict[str, int]:
    """Kill at every boundary of the merges that end at these steps; resume; compare.

    To be called in a process that has no other threads, for it forks.

    Args:
        stride: of so many boundaries one is tried.
    """
    torch.set_num_threads(1)
    whole = in_fork(partial(train, folder / "whole", until=MERGE_STEPS[-1]))
    points, different, lost_max = 0, 0, 0
    for step in merge_steps:
        prepared, work = folder / f"prepared-{step}", folder / "node"
        shutil.rmtree(work, ignore_errors=True)
        in_fork(partial(train, work, until=step - 1))
        shutil.copytree(work, prepared)
        training = Training(work)
        figures = training.take_step()
        for boundary in range(1, BOUNDARIES_MAX, stride):
            shutil.rmtree(work)
            shutil.copytree(prepared, work)
            if not kill_at_boundary(partial(training.close_step, figures), boundary):
                break
            until = min(MERGE_STEPS[-1], step + 2)
            resumed = in_fork(partial(train, work, until=until))
            different += resumed.digests != whole.digests[resumed.from_step : until]
            lost_max = max(lost_max, step - resumed.from_step)
            points += 1
        say(f"merge at step {step}: {points} points so far, different {different}")
    return {"kill_points": points, "different": different, "steps_lost_max": lost_max}


def train(work: Path, *, until: int) -> Passed:
    """Resume what lies under `work`, or begin, and train; a checkpoint after every step."""
    training = Training(work)
    return Passed(from_step=training.state.step, digests=tuple(_steps(training, until)))


def _steps(training: Training, until: int) -> Iterator[str]:
    while training.state.step < until:
        figures = training.take_step()
        training.close_step(figures)
        yield training.digest(figures)


def _refuse(code: FaultCode, text: str) -> None:
    raise Refused(f"{code.value}: {text}")


def _raise(fault: Fault) -> None:
    raise fault
