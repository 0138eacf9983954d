"""Continual training: what each run learns from, which merges stand, and what is remembered.

Several runs train one after another, each on samples of its own, and each is folded into one
adapter. Everything here is a function of counts, seeds and figures.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from corpus.packing import Indices
from trainer.domain.plan import MultiRunPlan

# Runs draw from a stream of the seed that neither the holdout nor the order of a pass uses.
_SLICE_STREAM = 0x534C4943
# A mean loss that moves by less than this share over a run has not moved.
FLAT_SHARE = 1e-3


class MergeOutcome(enum.StrEnum):
    """What became of a run's merge."""

    MERGED = "merged"
    NOT_FINITE = "not_finite"
    DRIFTED = "drifted"
    REGRESSED = "regressed"
    NOT_VALIDATED = "not_validated"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRecord:
    """One run in the merge history.

    Attributes:
        number: of the run, from 1.
        step: optimizer steps of the whole training when it ended; `step_count` are its own.
        weight: lambda, how far B moved, or would have.
        drift_cosine: between the merged B before and the run's own; None when either is zero or
            not finite.
        delta_norm: how far the run moved the trainable weights from where it began; None when
            that is not finite.
        loss_begin, loss_end: mean training loss over its first and second half.
        held_out_loss_before, held_out_loss_after: of the adapter without and with this merge; None
            where nothing is held out.
        sha256: of the adapter after this merge; empty where none was kept.
    """

    number: int
    outcome: MergeOutcome
    step: int
    step_count: int
    weight: float
    drift_cosine: float | None
    delta_norm: float | None
    loss_begin: float
    loss_end: float
    held_out_loss_before: float | None
    held_out_loss_after: float | None
    sha256: str

    @property
    def is_flat(self) -> bool:
        """Whether the training loss stayed what it was."""
        return abs(self.loss_end - self.loss_begin) <= FLAT_SHARE * abs(self.loss_begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfLosses:
    """Sums of the losses over the first and the second half of a run."""

    begin_sum: float = 0.0
    begin_count: int = 0
    end_sum: float = 0.0
    end_count: int = 0

    def plus(self, loss: float, *, index: int, steps: int) -> "HalfLosses":
        """With the loss of the run's step `index` (from 0) of `steps`."""
        if 2 * index < steps:
            return replace(self, begin_sum=self.begin_sum + loss, begin_count=self.begin_count + 1)
        return replace(self, end_sum=self.end_sum + loss, end_count=self.end_count + 1)

    @property
    def means(self) -> tuple[float, float]:
        """Mean of the first and of the second half; a run that ended in the first has one mean."""
        begin = self.begin_sum / max(1, self.begin_count)
        return begin, self.end_sum / self.end_count if self.end_count else begin


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualProgress:
    """The progress of a continual training beside its weights; part of the checkpoint's manifest.

    Attributes:
        held_out_loss: of the adapter as merged so far; None before it was measured.
        skipped_count: steps that fp16 had skipped when the last run ended.
        losses: of the run under way.
    """

    history: tuple[MergeRecord, ...] = ()
    held_out_loss: float | None = None
    skipped_count: int = 0
    losses: HalfLosses = HalfLosses()


def slices(multi_run: MultiRunPlan, *, pool_count: int, seed: int) -> tuple[Indices, ...]:
    """Indices into the training pool for each run, none twice within a run.

    The runs share a pass over the pool as long as it lasts, so that their samples are disjoint;
    what is left of it begins the next run, and a new pass fills up the rest.
    """
    wanted = multi_run.samples_per_run
    assert 0 < wanted <= pool_count, "a slice is larger than the pool"
    waiting = np.empty(0, dtype=np.int64)
    taken: list[Indices] = []
    pass_count = 0
    for _ in range(multi_run.run_count):
        chosen, waiting = waiting[:wanted], waiting[wanted:]
        if len(chosen) < wanted:
            order = _pass(pool_count, seed=seed, number=pass_count, in_order=multi_run.in_order)
            pass_count += 1
            fresh = order[~_among(chosen, pool_count)[order]][: wanted - len(chosen)]
            # What the run had already stays at the head of the new pass, for the next run.
            waiting = order[~_among(fresh, pool_count)[order]]
            chosen = np.concatenate([chosen, fresh])
        taken.append(chosen)
    return tuple(taken)


def merge_weight(merge_count: int) -> float:
    """Lambda of a merge: 1 / sqrt(i), where i counts the runs in the adapter, this one included.

    Source: Qiao and Mahdavi 2025, arXiv:2512.23017, time-aware scaling.
    """
    return 1.0 / math.sqrt(merge_count)


def decide_by_weights(
    multi_run: MultiRunPlan, *, is_finite: bool, drift_cosine: float | None
) -> MergeOutcome:
    """Whether the merged weights may stand, before anything is evaluated with them.

    The first merge has nothing to drift from: its cosine is None.
    """
    if not is_finite:
        return MergeOutcome.NOT_FINITE
    if drift_cosine is not None and drift_cosine < multi_run.drift_minimum_cosine:
        return MergeOutcome.DRIFTED
    return MergeOutcome.MERGED


def decide_by_losses(
    multi_run: MultiRunPlan, *, before: float | None, after: float | None
) -> MergeOutcome:
    """Whether a merge may stand after its evaluation; the losses are None when not measured.

    A gate that could not be asked does not let anything through.
    """
    limit = multi_run.eval_maximum_regression
    if before is None or after is None:
        return MergeOutcome.MERGED if limit is None else MergeOutcome.NOT_VALIDATED
    if not math.isfinite(after):
        return MergeOutcome.NOT_FINITE
    if limit is not None and after - before > limit:
        return MergeOutcome.REGRESSED
    return MergeOutcome.MERGED


def merged_count(history: Sequence[MergeRecord]) -> int:
    """Runs that are in the adapter."""
    return sum(record.outcome is MergeOutcome.MERGED for record in history)


def learnt_nothing_since_first(history: Sequence[MergeRecord]) -> bool:
    """Whether the loss is flat from run 2 on: the sign of a training that goes on without learning.

    Early runs may be flat for good reasons; when all later ones are, something is broken.
    """
    return len(history) > 1 and all(record.is_flat for record in history[1:])


def in_words(record: MergeRecord, multi_run: MultiRunPlan) -> str:
    """Why a run's merge was refused, with its figures."""
    said = f"Run {record.number} of {multi_run.run_count} was not merged"
    match record.outcome:
        case MergeOutcome.NOT_FINITE:
            return f"{said}: a weight or the held-out loss is infinite or not a number"
        case MergeOutcome.DRIFTED:
            return (
                f"{said}: the cosine between the old and the new B is {record.drift_cosine:.3f}, "
                f"at least {multi_run.drift_minimum_cosine:g} is wanted"
            )
        case MergeOutcome.REGRESSED:
            return (
                f"{said}: the held-out loss would go from {record.held_out_loss_before:.4f} to "
                f"{record.held_out_loss_after:.4f}, at most {multi_run.eval_maximum_regression:g} "
                "more is allowed"
            )
        case MergeOutcome.NOT_VALIDATED:
            return f"{said}: there was no memory to measure its held-out loss"
        case _:
            raise AssertionError("a merge that was accepted needs no reason")


def _pass(count: int, *, seed: int, number: int, in_order: bool) -> Indices:
    if in_order:
        return np.arange(count)
    return np.random.default_rng([seed, _SLICE_STREAM, number]).permutation(count)


def _among(indices: Indices, count: int) -> npt.NDArray[np.bool_]:
    """For each of `count` indices whether it is one of these."""
    mask = np.zeros(count, dtype=np.bool_)
    mask[indices] = True
    return mask
