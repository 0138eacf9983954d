"""Validation of a run on MLX: the held-out rows, the best weights, an early end."""

from dataclasses import dataclass, field

import torch

from corpus.packing import holdout_split
from lexicon.faults import Fault
from trainer.domain.plan import ValidationPlan, validation_interval
from trainer.training.batches import Example
from trainer.training.checkpoint import Progress
from trainer.training.dataset import Desk, Warn
from trainer.training.mlx_rail import steps as loop
from trainer.training.validation import BEST_PREFIX, is_gain


@dataclass(slots=True, kw_only=True)
class MlxValidation:
    """Validates every so many steps; without a plan for it, it does nothing.

    Attributes:
        best: the adapter in PEFT's layout at the best validation so far.
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

    def after_step(self, state: loop.MlxState, *, steps: int, warn: Warn) -> None:
        """Validate when it is time to; an out-of-memory costs this validation and no more."""
        if self.plan is None or not self.rows:
            return
        if state.step % validation_interval(self.plan, steps=steps) and state.step != steps:
            return
        try:
            self.latest_loss = loop.mean_loss(state, self.rows)
        except Fault as fault:
            warn(fault.code, f"No memory for the validation at step {state.step}")
            return
        min_delta = self.plan.early_stop_min_delta
        if is_gain(self.latest_loss, self.best_loss, min_delta=min_delta):
            self.best_loss, self.without_gain_count = self.latest_loss, 0
            self.best = state.adapted.tensors()
        else:
            self.without_gain_count += 1

    def promote_best(self, state: loop.MlxState) -> bool:
        """Put the best weights into the model; whether they were others than the latest."""
        if not self.best or self.without_gain_count == 0:
            return False
        state.adapted.put(self.best)
        return True

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it."""
        return {f"{BEST_PREFIX}{name}": tensor for name, tensor in self.best.items()}

    def restore(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        """Continue where a checkpoint stood."""
        self.best_loss = progress.best_validation_loss
        self.latest_loss = progress.latest_validation_loss
        self.without_gain_count = progress.validations_without_gain
        self.best = {
            name.removeprefix(BEST_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(BEST_PREFIX)
        }


def split(
    plan: ValidationPlan | None, desk: Desk, *, seed: int
) -> tuple[tuple[Example, ...], MlxValidation]:
    """The rows to train on, and the validation on others; the same rows as on every rail."""
    if plan is None:
        return desk.rows, MlxValidation(plan=None, rows=())
    if desk.validation_rows:
        return desk.rows, MlxValidation(plan=plan, rows=desk.validation_rows)
    train, held = holdout_split(len(desk.rows), ratio=plan.holdout_ratio, seed=seed)
    return (
        tuple(desk.rows[i] for i in train),
        MlxValidation(plan=plan, rows=tuple(desk.rows[i] for i in held)),
    )
