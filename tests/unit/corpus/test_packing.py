"""Packing, shuffling and holding out: pure functions of counts and a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.packing import (
    check_samples_per_run,
    holdout_count,
    holdout_split,
    pack,
    shuffle_order,
    unpack,
)
from lexicon.faults import Fault, FaultCode

lengths = st.lists(st.integers(0, 100), max_size=300)
seeds = st.integers(0, 2**63 - 1)


@given(lengths=lengths, seed=seeds)
def test_pack_then_unpack_is_identity(lengths: list[int], seed: int) -> None:
    """style.md, Tests: every example is in exactly one row, and no row is too long."""
    rows = pack(lengths, row_tokens=100, seed=seed)
    assert unpack(rows) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 100 for row in rows)
    assert rows == pack(lengths, row_tokens=100, seed=seed)


def test_alpaca_like_lengths_fill_their_rows() -> None:
    """Log-normal lengths around 120 tokens in rows of 2048: hardly a token of padding."""
    drawn = np.random.default_rng(0).lognormal(4.6, 0.7, 20_000)
    lengths = np.clip(drawn, 16, 2048).astype(int).tolist()
    rows = pack(lengths, row_tokens=2048, seed=1)
    assert sum(lengths) / (len(rows) * 2048) > 0.98


def test_rows_of_another_seed_are_others() -> None:
    lengths = [10] * 100
    assert pack(lengths, row_tokens=100, seed=1) != pack(lengths, row_tokens=100, seed=2)


@given(count=st.integers(0, 500), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_sees_every_row_once(count: int, seed: int, epoch: int) -> None:
    """001-25: the shuffle is seeded."""
    order = shuffle_order(count, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, shuffle_order(count, seed=seed, epoch=epoch))


def test_the_order_never_changes_between_versions() -> None:
    """A resumed run on another machine must see the same batches."""
    assert shuffle_order(8, seed=42, epoch=0).tolist() == [3, 4, 2, 7, 6, 1, 5, 0]


@given(count=st.integers(0, 3000), ratio=st.floats(0, 0.5), seed=seeds)
def test_held_out_rows_are_never_trained_on(count: int, ratio: float, seed: int) -> None:
    """002-18: no index is in both sets, and none is lost."""
    training, held = holdout_split(count, ratio=ratio, seed=seed)
    assert not set(training.tolist()) & set(held.tolist())
    assert sorted([*training.tolist(), *held.tolist()]) == list(range(count))
    assert len(held) == holdout_count(count, ratio=ratio)
    if count >= 2 and ratio > 0:
        assert 1 <= len(held) <= max(1, count * ratio)
        assert len(training)


def test_a_tenth_is_held_out_and_nine_tenths_are_the_pool() -> None:
    """002-18"""
    training, held = holdout_split(1000, ratio=0.1, seed=42)
    assert (len(training), len(held)) == (900, 100)


def test_a_slice_larger_than_the_pool_is_refused_with_the_bound() -> None:
    """002-17, 002-20"""
    check_samples_per_run(samples_per_run=900, row_count=1000, ratio=0.1)
    with pytest.raises(Fault) as caught:
        check_samples_per_run(samples_per_run=901, row_count=1000, ratio=0.1)
    assert caught.value.code is FaultCode.CONFIG_INVALID
    assert "samples_per_run exceeds training pool" in caught.value.message
    assert caught.value.remedy == "Reduce --samples (Python: samples_per_run) below 900"
    check_samples_per_run(samples_per_run=1000, row_count=1000, ratio=0)
