"""Continual training, by its rules alone: slices, weights of merges, gates, what is remembered."""

import math
from collections import Counter
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.packing import holdout_split
from trainer.domain.continual import (
    ContinualProgress,
    HalfLosses,
    MergeOutcome,
    MergeRecord,
    decide_by_losses,
    decide_by_weights,
    in_words,
    learnt_nothing_since_first,
    merge_weight,
    merged_count,
    slices,
)
from trainer.domain.plan import MultiRunPlan

FIVE = MultiRunPlan(
    run_count=5,
    samples_per_run=10,
    in_order=False,
    drift_minimum_cosine=-1.0,
    eval_maximum_regression=None,
)


def a_record(**changes: object) -> MergeRecord:
    record = MergeRecord(
        number=1,
        outcome=MergeOutcome.MERGED,
        step=10,
        step_count=10,
        weight=1.0,
        drift_cosine=None,
        delta_norm=2.0,
        loss_begin=3.0,
        loss_end=2.0,
        held_out_loss_before=3.5,
        held_out_loss_after=2.5,
        sha256="",
    )
    return replace(record, **changes)  # type: ignore[arg-type]


@given(
    row_count=st.integers(2, 400),
    share=st.floats(0.01, 1.0),
    run_count=st.integers(2, 12),
    ratio=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 2**31),
    in_order=st.booleans(),
)
@settings(max_examples=150)
def test_no_index_is_in_a_slice_and_held_out(
    row_count: int, share: float, run_count: int, ratio: float, seed: int, in_order: bool
) -> None:
    """002-18: and within a run no sample comes twice, over all runs none twice more than another"""
    pool, held = holdout_split(row_count, ratio=ratio, seed=seed)
    multi_run = replace(
        FIVE,
        run_count=run_count,
        samples_per_run=max(1, int(share * len(pool))),
        in_order=in_order,
    )
    chosen = slices(multi_run, pool_count=len(pool), seed=seed)
    assert [len(run) for run in chosen] == [multi_run.samples_per_run] * run_count
    assert all(len(set(run.tolist())) == len(run) for run in chosen)
    assert not {int(pool[index]) for run in chosen for index in run} & set(held.tolist())
    uses = Counter(index for run in chosen for index in run.tolist())
    assert max(uses.values()) - min(uses[index] for index in range(len(pool))) <= 1
    again = slices(multi_run, pool_count=len(pool), seed=seed)
    assert all((a == b).all() for a, b in zip(chosen, again, strict=True))


def test_slices_are_disjoint_while_the_pool_lasts() -> None:
    """002-18"""
    chosen = slices(FIVE, pool_count=50, seed=7)
    assert sorted(index for run in chosen for index in run.tolist()) == list(range(50))


def test_without_holdout_the_whole_set_is_the_pool() -> None:
    """002-19"""
    pool, held = holdout_split(50, ratio=0.0, seed=7)
    chosen = slices(FIVE, pool_count=len(pool), seed=7)
    assert len(held) == 0
    assert {index for run in chosen for index in run.tolist()} == set(range(50))


def test_slices_in_order_follow_the_rows() -> None:
    chosen = slices(replace(FIVE, in_order=True), pool_count=50, seed=7)
    assert [run.tolist() for run in chosen] == [list(range(b, b + 10)) for b in range(0, 50, 10)]


def test_other_seeds_give_other_slices() -> None:
    first, second = (slices(FIVE, pool_count=50, seed=seed)[0].tolist() for seed in (1, 2))
    assert first != second


def test_the_weight_of_a_merge_falls_with_the_root_of_its_number() -> None:
    """Qiao and Mahdavi 2025, arXiv:2512.23017: lambda(i) = 1 / sqrt(i)"""
    assert [merge_weight(i) for i in (1, 4, 9, 16)] == [1.0, 0.5, 1 / 3, 0.25]


@pytest.mark.parametrize(
    ("is_finite", "cosine", "expected"),
    [
        (True, 0.9, MergeOutcome.MERGED),
        (True, None, MergeOutcome.MERGED),
        (True, 0.4, MergeOutcome.DRIFTED),
        (False, 0.9, MergeOutcome.NOT_FINITE),
        (False, None, MergeOutcome.NOT_FINITE),
    ],
)
def test_the_weights_decide_first(
    is_finite: bool, cosine: float | None, expected: MergeOutcome
) -> None:
    gated = replace(FIVE, drift_minimum_cosine=0.5)
    assert decide_by_weights(gated, is_finite=is_finite, drift_cosine=cosine) is expected


@pytest.mark.parametrize(
    ("limit", "before", "after", "expected"),
    [
        (None, 2.0, 9.0, MergeOutcome.MERGED),
        (None, None, None, MergeOutcome.MERGED),
        (0.1, 2.0, 2.05, MergeOutcome.MERGED),
        (0.1, 2.0, 1.0, MergeOutcome.MERGED),
        (0.1, 2.0, 2.2, MergeOutcome.REGRESSED),
        (0.0, 2.0, 2.0, MergeOutcome.MERGED),
        (0.1, 2.0, None, MergeOutcome.NOT_VALIDATED),
        (None, 2.0, math.inf, MergeOutcome.NOT_FINITE),
        (0.1, 2.0, math.nan, MergeOutcome.NOT_FINITE),
    ],
)
def test_the_held_out_loss_decides_last(
    limit: float | None, before: float | None, after: float | None, expected: MergeOutcome
) -> None:
    gated = replace(FIVE, eval_maximum_regression=limit)
    assert decide_by_losses(gated, before=before, after=after) is expected


def test_a_refusal_says_its_figures() -> None:
    gated = replace(FIVE, drift_minimum_cosine=0.5, eval_maximum_regression=0.1)
    said = in_words(a_record(number=3, outcome=MergeOutcome.DRIFTED, drift_cosine=0.25), gated)
    assert said == (
        "Run 3 of 5 was not merged: the cosine between the old and the new B is 0.250, "
        "at least 0.5 is wanted"
    )
    regressed = a_record(number=2, outcome=MergeOutcome.REGRESSED)
    assert "from 3.5000 to 2.5000, at most 0.1 more" in in_words(regressed, gated)
    for outcome in (MergeOutcome.NOT_FINITE, MergeOutcome.NOT_VALIDATED):
        assert "Run 1 of 5 was not merged: " in in_words(a_record(outcome=outcome), gated)


def test_only_merged_runs_count() -> None:
    history = [a_record(), a_record(outcome=MergeOutcome.DRIFTED), a_record(number=3)]
    assert merged_count(history) == 2


def test_a_loss_that_is_flat_from_run_two_on_is_noticed() -> None:
    """002-22"""
    flat = a_record(number=2, loss_begin=2.0, loss_end=2.0001)
    assert learnt_nothing_since_first([a_record(), flat, replace(flat, number=3)])
    assert not learnt_nothing_since_first([a_record(), flat, a_record(number=3)])
    assert not learnt_nothing_since_first([flat])


def test_losses_are_kept_by_halves() -> None:
    losses = HalfLosses()
    for index, loss in enumerate((4.0, 3.0, 2.0, 1.0)):
        losses = losses.plus(loss, index=index, steps=4)
    assert losses.means == (3.5, 1.5)
    assert HalfLosses().plus(4.0, index=0, steps=4).means == (4.0, 4.0)


def test_progress_survives_json() -> None:
    progress = ContinualProgress(
        history=(
            a_record(drift_cosine=0.1 + 0.2),
            a_record(number=2, outcome=MergeOutcome.NOT_FINITE),
        ),
        held_out_loss=1 / 3,
        losses=HalfLosses(begin_sum=0.1, begin_count=3),
    )
    document = msgspec.json.decode(msgspec.json.encode(progress))
    assert msgspec.convert(document, ContinualProgress) == progress
