"""Validation while training: a holdout that training never sees, the best weights, an early end."""

import math
from dataclasses import dataclass, field

import torch

from corpus.packing import holdout_split
from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import ValidationPlan, validation_interval
from trainer.training import loop
from trainer.training.batches import Example
from trainer.training.checkpoint import TrainingProgress
from trainer.training.dataset import TrainingData, Warn

BEST_PREFIX = "best/"


@dataclass(slots=True, kw_only=True)
class Validation:
    """Validates every so many steps; without a plan for it, it does nothing.

    Attributes:
        best: the adapter's weights at the best validation so far, on the CPU.
    """

    plan: ValidationPlan | None
    rows: tuple[Example, ...]
    latest_loss: float | None = None
    best_loss: float | None = None
    without_gain_count: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def wants_stop(self) -> bool:
        """Whether the loss has not improved for as many validations as the user has patience."""
        patience = self.plan.early_stop_patience if self.plan else 0
        return 0 < patience <= self.without_gain_count

    def after_step(self, state: loop.TrainState, *, steps: int, warn: Warn) -> None:
        """Validate when it is time to; an out-of-memory costs this validation and no more."""
        if self.plan is None or not self.rows:
            return
        interval = validation_interval(self.plan, steps=steps)
        if state.step % interval and state.step != steps:
            return
        loss = self.measure(state, warn=warn)
        if loss is not None:
            if not math.isfinite(loss) and math.isfinite(self.latest_loss or 0.0):
                text = f"The validation loss at step {state.step} is {loss}: it is never the best"
                warn(FaultCode.RUNTIME_LOSS_NOT_FINITE, text)
            self.judge(loss, state)

    def measure(self, state: loop.TrainState, *, warn: Warn) -> float | None:
        """The mean loss of the held-out rows; None without such rows or without memory for one."""
        if not self.rows:
            return None
        try:
            return loop.mean_loss(state, self.rows)
        except Fault as fault:
            state.model.free_memory()
            warn(fault.code, f"No memory for the validation at step {state.step}")
            return None

    def judge(self, loss: float, state: loop.TrainState) -> None:
        """Count a validation of the weights that the model holds now."""
        assert self.plan is not None
        self.latest_loss = loss
        if is_gain(loss, self.best_loss, min_delta=self.plan.early_stop_min_delta):
            self.best_loss, self.without_gain_count = loss, 0
            self.best = state.model.weights()
        else:
            self.without_gain_count += 1

    def promote_best(self, state: loop.TrainState) -> bool:
        """Put the best weights into the model; whether they were others than the latest."""
        if not self.best or self.without_gain_count == 0:
            return False
        loop.put(state, self.best)
        return True

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it."""
        return {f"{BEST_PREFIX}{name}": tensor for name, tensor in self.best.items()}

    def restore(self, progress: TrainingProgress, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint."""
        self.best_loss = progress.best_validation_loss
        self.latest_loss = progress.latest_validation_loss
        self.without_gain_count = progress.validations_without_gain
        self.best = {
            name.removeprefix(BEST_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(BEST_PREFIX)
        }


def is_gain(loss: float, best: float | None, *, min_delta: float) -> bool:
    """Whether a loss is better than the best so far; one that is not a number never is."""
    return math.isfinite(loss) and (best is None or loss < best - min_delta)


def split(
    plan: ValidationPlan | None, data: TrainingData, *, seed: int
) -> tuple[tuple[Example, ...], Validation]:
    """The rows to train on, and the validation on the others."""
    if plan is None:
        return data.rows, Validation(plan=None, rows=())
    if data.validation_rows:
        return data.rows, Validation(plan=plan, rows=data.validation_rows)
    train, held = holdout_split(len(data.rows), ratio=plan.holdout_ratio, seed=seed)
    return (
        tuple(data.rows[i] for i in train),
        Validation(plan=plan, rows=tuple(data.rows[i] for i in held)),
    )
