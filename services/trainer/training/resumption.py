"""Where a run goes on after an attempt that was lost: the newest of its checkpoints that is sound.

A checkpoint is looked at as a whole before anything of it is used, so that one that does not hold
what the run needs leaves the state untouched for the one before it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.continual import merged_count
from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import BatchPlan, Places
from trainer.training import checkpoint, loop
from trainer.training.checkpoint import TrainingProgress
from trainer.training.continual import MERGED_PREFIX, TUNED_PREFIX, ContinualSchedule
from trainer.training.dataset import Warn
from trainer.training.validation import BEST_PREFIX

log = logging.getLogger(__name__)
# What a checkpoint holds beside the weights and moments of the model under training.
SIDE_PREFIXES = (BEST_PREFIX, TUNED_PREFIX, MERGED_PREFIX)
Tensors = Mapping[str, torch.Tensor]


def from_newest(places: Places, use: Callable[[Path], None], warn: Warn) -> None:
    """Use the first of the checkpoints that can be used, the newest first.

    Args:
        use: takes a checkpoint's folder; when it raises, it has changed nothing.
        warn: hears of each that cannot be used; the last one costs its steps, and not the run.
    """
    folders = [*filter(None, (places.checkpoint_folder,)), *places.earlier_checkpoint_folders]
    for left_count, folder in zip(reversed(range(len(folders))), folders, strict=True):
        try:
            use(Path(folder))
        except Fault as fault:
            instead = "the one before it is tried" if left_count else "training starts over"
            warn(fault.code, f"{fault.message}; {instead}")
        else:
            return


def resume_from(
    folder: Path,
    state: loop.TrainState,
    continual_schedule: ContinualSchedule,
    *,
    run: str,
    fingerprint: str,
) -> None:
    """Put state and schedule where the checkpoint was taken.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID when it is not whole, not of this run, or does not fit
            together; nothing has been changed then.
    """
    progress, tensors = checkpoint.read(folder, run=run, fingerprint=fingerprint)
    require_possible(progress, continual_schedule.batches, steps=continual_schedule.steps)
    merges = continual_schedule.read(progress.continual_schedule)
    _require_counted(progress, continual_schedule)
    _require_sides(tensors, progress, continual_schedule, state)
    loop.restore(state, {k: v for k, v in tensors.items() if not k.startswith(SIDE_PREFIXES)})
    continual_schedule.validation.restore(progress, dict(tensors))
    continual_schedule.restore(state, merges, dict(tensors), folder=folder)
    state.step = progress.step
    state.trained_token_count = progress.trained_token_count
    state.losses = LossCurve.of(progress.losses)
    state.recovery = replace(state.recovery, micro_batch_size=progress.micro_batch_size)
    log.info("resumed at step %d", state.step)


def require_possible(progress: TrainingProgress, batches: BatchPlan, *, steps: int) -> None:
    """Checks that a run of so many steps can stand where the checkpoint says.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID.
    """
    if progress.step > steps:
        raise _unsound(f"it is of step {progress.step}, but the run has {steps}")
    if progress.micro_batch_size > batches.micro_batch_size:
        given, most = progress.micro_batch_size, batches.micro_batch_size
        raise _unsound(f"its micro-batch is {given}, but that of the run {most}")


def _require_counted(progress: TrainingProgress, continual_schedule: ContinualSchedule) -> None:
    """Every run of a continual training that is over by this step is in the history."""
    if not continual_schedule.slices:
        return
    history, run_steps = (
        continual_schedule.read(progress.continual_schedule).history,
        continual_schedule.run_steps,
    )
    ends = [record.step for record in history]
    if ends != [run_steps * number for number in range(1, progress.step // run_steps + 1)]:
        raise _unsound(f"runs that ended at {ends} do not lead to step {progress.step}")


def _require_sides(
    tensors: Tensors,
    progress: TrainingProgress,
    continual_schedule: ContinualSchedule,
    state: loop.TrainState,
) -> None:
    """The best weights and those of merges are there when they must be, whole, and in shape."""
    count = merged_count(continual_schedule.read(progress.continual_schedule).history)
    needed = {
        BEST_PREFIX: progress.best_validation_loss is not None,
        TUNED_PREFIX: count > 0,
        MERGED_PREFIX: count > 0,
    }
    kinds = {name: (each.shape, each.dtype) for name, each in state.model.weights().items()}
    for prefix, is_needed in needed.items():
        found = {
            name.removeprefix(prefix): (each.shape, each.dtype)
            for name, each in tensors.items()
            if name.startswith(prefix)
        }
        if found != (kinds if is_needed else {}):
            raise _unsound(f"its tensors under {prefix} are not those of the run")


def _unsound(why: str) -> Fault:
    return Fault(FaultCode.STATE_CHECKPOINT_INVALID, f"The checkpoint does not fit together: {why}")
