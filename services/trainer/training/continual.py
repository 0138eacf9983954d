"""The schedule of a training: which rows each step draws from, and what happens between its runs.

An ordinary training is a schedule of one run. A continual one has several on samples of their own;
after each the run is folded into one adapter by SLAO, unless a gate refuses it, and the next run
begins from the last one that was let in. Steps are counted through over all runs: progress, bill
and checkpoints know nothing of them. Every run has an optimizer and a schedule of its own.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from corpus.packing import Indices, check_samples_per_run
from lexicon.faults import Fault, FaultCode
from trainer.domain import continual
from trainer.domain.continual import ContinualProgress, MergeOutcome, MergeRecord
from trainer.domain.plan import (
    BatchPlan,
    MultiRunPlan,
    Places,
    steps_per_epoch,
    total_epochs,
    total_steps,
)
from trainer.training import history, loop, slao
from trainer.training.batches import Example
from trainer.training.dataset import Warn
from trainer.training.validation import Validation

log = logging.getLogger(__name__)
TUNED_PREFIX = "tuned/"
MERGED_PREFIX = "merged/"
# Hears of each run that has ended, and of the file with the adapter after its merge.
OnMerge = Callable[[MergeRecord, Path | None], None]
Weights = dict[str, torch.Tensor]


@dataclass(slots=True, kw_only=True)
class ContinualSchedule:
    """The runs of a training; an ordinary one has a single run and merges nothing.

    Attributes:
        rows: the training pool.
        slices: indices into the pool, one array a run; empty for an ordinary training.
        initial: weights before the first step; what is used while nothing is merged.
        tuned: weights at the end of the last run that was merged; None before the first.
        merged: the adapter as merged so far; None before the first merge.
    """

    batches: BatchPlan
    multi_run: MultiRunPlan | None
    places: Places
    rows: tuple[Example, ...]
    validation: Validation
    warn: Warn
    on_merge: OnMerge
    slices: tuple[Indices, ...] = ()
    progress: ContinualProgress = field(default_factory=ContinualProgress)
    initial: Weights = field(default_factory=dict)
    tuned: Weights | None = None
    merged: Weights | None = None
    _drawn: tuple[int, tuple[Example, ...]] = (-1, ())

    @classmethod
    def of(
        cls,
        multi_run: MultiRunPlan | None,
        rows: tuple[Example, ...],
        validation: Validation,
        state: loop.TrainState,
        *,
        places: Places,
        warn: Warn,
        on_merge: OnMerge,
    ) -> "ContinualSchedule":
        """The schedule of a training, before its first step.

        Args:
            multi_run: None for an ordinary training.
            places: where the merge history lies.

        Raises:
            Fault: CONFIG_INVALID when a run wants more samples than the pool has.
        """
        continual_schedule = cls(
            batches=state.batches,
            multi_run=multi_run,
            places=places,
            rows=rows,
            validation=validation,
            warn=warn,
            on_merge=on_merge,
        )
        if multi_run is None:
            return continual_schedule
        held = validation.plan if validation.plan and validation.plan.dataset is None else None
        check_samples_per_run(
            samples_per_run=multi_run.samples_per_run,
            row_count=len(rows) + (len(validation.rows) if held else 0),
            ratio=held.holdout_ratio if held else 0.0,
        )
        continual_schedule.slices = continual.slices(
            multi_run, pool_count=len(rows), seed=state.batches.seed
        )
        continual_schedule.initial = state.model.weights()
        return continual_schedule

    @property
    def run_steps(self) -> int:
        """Optimizer steps of one run."""
        return total_steps(self.batches, row_count=self._run_row_count)

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs."""
        return self.run_steps * self._run_count

    @property
    def epochs(self) -> int:
        """Passes that the runs begin, each over its own rows."""
        return total_epochs(self.batches, row_count=self._run_row_count) * self._run_count

    def epoch_of(self, step: int) -> int:
        """Pass, from 1, that optimizer step `step` (from 1) belongs to."""
        number, index = divmod(step - 1, self.run_steps)
        passes = total_epochs(self.batches, row_count=self._run_row_count)
        within = index // steps_per_epoch(self.batches, row_count=self._run_row_count)
        return number * passes + within + 1

    def rows_at(self, step: int) -> tuple[Example, ...]:
        """Rows that optimizer step `step` (from 0) draws from."""
        if not self.slices:
            return self.rows
        number = step // self.run_steps
        if self._drawn[0] != number:
            self._drawn = (number, tuple(self.rows[index] for index in self.slices[number]))
        return self._drawn[1]

    def left(self, step: int) -> Iterator[tuple[tuple[Example, ...], range]]:
        """For each run that is not over at `step`: its rows, and the steps it has left."""
        for number in range(step // self.run_steps, self._run_count):
            begin = max(0, step - number * self.run_steps)
            yield self.rows_at(number * self.run_steps), range(begin, self.run_steps)

    def after_step(self, state: loop.TrainState, figures: loop.StepFigures) -> None:
        """Validate when it is time to; fold the run in when it is over, and begin the next.

        Raises:
            Fault: RUNTIME_ADAPTER_UNCHANGED when the run has moved no weight.
        """
        if not self.slices:
            self.validation.after_step(state, steps=self.steps, warn=self.warn)
            return
        losses = self.progress.losses.plus(
            figures.loss, index=state.step_of_run - 1, steps=self.run_steps
        )
        self.progress = replace(self.progress, losses=losses)
        if state.step_of_run == self.run_steps:
            self._close_run(state)

    def finish(self, state: loop.TrainState) -> None:
        """Put the weights that the user gets into the model; a run cut short is folded in first.

        Raises:
            Fault: RUNTIME_MERGE_REFUSED when no run was merged.
        """
        if not self.slices:
            if self.validation.promote_best(state):
                log.info("the best validation's weights were promoted")
            return
        # A run that was cut short before it moved anything takes nothing from those before it.
        if state.step_of_run and (self.merged is None or self._has_moved(state)):
            self._close_run(state)
        if continual.learnt_nothing_since_first(self.progress.history):
            self.warn(
                FaultCode.RUNTIME_ADAPTER_UNCHANGED,
                "The training loss is flat from run 2 on: the later runs have taught nothing",
            )
        if self.merged is None:
            reasons = "; ".join(
                continual.in_words(each, self._plan) for each in self.progress.history
            )
            raise Fault(FaultCode.RUNTIME_MERGE_REFUSED, f"No run was merged. {reasons}")
        loop.put(state, self.merged)
        if self._stops_early:
            self.validation.promote_best(state)

    def tensors(self) -> Weights:
        """What a checkpoint keeps beside the weights under training."""
        kept = {TUNED_PREFIX: self.tuned or {}, MERGED_PREFIX: self.merged or {}}
        return {f"{prefix}{name}": t for prefix, all_ in kept.items() for name, t in all_.items()}

    def document(self) -> dict[str, Any] | None:
        """The progress for the checkpoint's manifest; None for an ordinary training."""
        return msgspec.to_builtins(self.progress) if self.slices else None

    def read(self, document: Mapping[str, Any] | None) -> ContinualProgress:
        """The progress in a checkpoint's manifest; nothing is changed by it yet.

        Raises:
            Fault: STATE_CHECKPOINT_INVALID.
        """
        if not self.slices:
            return ContinualProgress()
        try:
            return msgspec.convert(document, ContinualProgress)
        except msgspec.ValidationError as error:
            raise Fault(
                FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint holds no merge history"
            ) from error

    def restore(
        self, state: loop.TrainState, progress: ContinualProgress, tensors: Weights, *, folder: Path
    ) -> None:
        """Continue from the checkpoint in `folder`."""
        if not self.slices:
            return
        self.tuned = _under(TUNED_PREFIX, tensors)
        self.merged = _under(MERGED_PREFIX, tensors)
        state.first_step = progress.history[-1].step if progress.history else 0
        state.first_skipped_count = progress.skipped_count
        kept = history.bring_over(
            self.places, progress.history, checkpoint_folder=folder, warn=self.warn
        )
        self.progress = replace(progress, history=kept)
        for record in kept:
            self.on_merge(record, history.file_of(self.places, record))

    def write_history(self, adapter_folder: Path, *, run: str, base_model: str) -> Path | None:
        """The folder with the history and the adapter after each merge; None without merges."""
        if not self.slices:
            return None
        return history.complete(
            self.places,
            self.progress.history,
            adapter_folder=adapter_folder,
            run=run,
            base_model=base_model,
            multi_run=self._plan,
        )

    @property
    def _plan(self) -> MultiRunPlan:
        assert self.multi_run is not None
        return self.multi_run

    @property
    def _run_count(self) -> int:
        return max(1, len(self.slices))

    @property
    def _run_row_count(self) -> int:
        return self._plan.samples_per_run if self.slices else len(self.rows)

    @property
    def _stops_early(self) -> bool:
        return bool(self.validation.plan and self.validation.plan.early_stop_patience)

    def _close_run(self, state: loop.TrainState) -> None:
        record, tuned, merged = self._merge_decision(state)
        if record.outcome is MergeOutcome.MERGED:
            self.tuned, self.merged = tuned, merged
            loop.put(state, merged)
            tensors = state.model.adapter_tensors()
            record = history.keep(self.places, record, tensors, warn=self.warn)
        else:
            loop.put(state, self.merged or self.initial)
            self.warn(FaultCode.RUNTIME_MERGE_REFUSED, continual.in_words(record, self._plan))
        self._note_validation(state)
        self.progress = ContinualProgress(
            history=(*self.progress.history, record),
            held_out_loss=self.progress.held_out_loss,
            skipped_count=state.skipped_count,
        )
        self.on_merge(record, history.file_of(self.places, record))
        loop.put(state, self._opening)
        loop.begin_again(state)

    @property
    def _opening(self) -> Weights:
        """Weights that the run under way began with."""
        return slao.opening(self.tuned) if self.tuned else self.initial

    def _has_moved(self, state: loop.TrainState) -> bool:
        return slao.distance(self._opening, state.model.weights()) != 0.0

    def _merge_decision(self, state: loop.TrainState) -> tuple[MergeRecord, Weights, Weights]:
        """The record of the run that just ended, its weights, and the adapter with it folded in."""
        number = len(self.progress.history) + 1
        tuned = state.model.weights()
        moved = slao.distance(self._opening, tuned)
        if moved == 0.0:
            raise Fault(
                FaultCode.RUNTIME_ADAPTER_UNCHANGED,
                f"Run {number} of {self._run_count} ended, but it has moved no weight",
            )
        weight = continual.merge_weight(continual.merged_count(self.progress.history) + 1)
        merged = slao.merged(self.merged, tuned, weight=weight)
        cosine = slao.drift_cosine(self.merged, tuned) if self.merged else None
        outcome = continual.decide_by_weights(
            self._plan, is_finite=slao.is_finite(merged), drift_cosine=cosine
        )
        before, after = self.progress.held_out_loss, None
        if outcome is MergeOutcome.MERGED:
            if before is None:
                before = self._held_out_loss(state, self.initial)
            after = None if before is None else self._held_out_loss(state, merged)
            outcome = continual.decide_by_losses(self._plan, before=before, after=after)
        standing = after if outcome is MergeOutcome.MERGED else before
        self.progress = replace(self.progress, held_out_loss=standing)
        loss_begin, loss_end = self.progress.losses.means
        record = MergeRecord(
            number=number,
            outcome=outcome,
            step=state.step,
            step_count=state.step_of_run,
            weight=weight,
            drift_cosine=cosine,
            delta_norm=_if_finite(moved),
            loss_begin=loss_begin,
            loss_end=loss_end,
            held_out_loss_before=before,
            held_out_loss_after=_if_finite(after),
            sha256="",
        )
        return record, tuned, merged

    def _held_out_loss(self, state: loop.TrainState, weights: Weights) -> float | None:
        """Mean loss of the held-out rows; None without such rows, or without memory for one."""
        loop.put(state, weights)
        return self.validation.measure(state, warn=self.warn)

    def _note_validation(self, state: loop.TrainState) -> None:
        """Count the adapter as merged so far among the validations; the model holds its weights."""
        loss = self.progress.held_out_loss
        if loss is None:
            return
        if self._stops_early:
            self.validation.judge(loss, state)
        self.validation.latest_loss = loss


def _if_finite(number: float | None) -> float | None:
    """The number, or None for what JSON cannot say."""
    return number if number is not None and math.isfinite(number) else None


def _under(prefix: str, tensors: Weights) -> Weights | None:
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return found or None
