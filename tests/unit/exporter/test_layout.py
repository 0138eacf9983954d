"""Placements are found by comparing numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain.layout import Placement, find_placement, row_order
from exporter.domain.quantization import TensorType


def find(source: np.ndarray, target: np.ndarray, expert: int | None = None) -> Placement | None:
    return find_placement(
        source,
        target,
        as_bits=as_they_are,
        tensor="t",
        stored=TensorType.BF16,
        expert=expert,
        head_counts=[4, 2],
    )


def as_they_are(rows: np.ndarray) -> np.ndarray:
    return rows


def bits(rows: int, columns: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**16, (rows, columns), np.uint16)


@given(heads=st.integers(1, 6), pairs=st.integers(1, 5))
def test_the_order_of_rotary_rows_is_a_permutation(heads: int, pairs: int) -> None:
    count = heads * pairs * 2
    order = row_order(count, rotary_heads=heads)
    assert order is not None
    assert sorted(order) == list(range(count))


def test_a_head_of_four_rows_is_interleaved() -> None:
    """llama.cpp's rotary layout: halves (0, 1) and (2, 3) become pairs (0, 2) and (1, 3)."""
    order = row_order(8, rotary_heads=2)
    assert order is not None
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rows_in_their_own_order_are_found() -> None:
    source = bits(8)
    found = find_placement(
        source,
        source.copy(),
        as_bits=as_they_are,
        tensor="t",
        stored=TensorType.BF16,
        expert=None,
        head_counts=[4, 2],
    )
    assert found == Placement(tensor="t", stored=TensorType.BF16)


def test_interleaved_rows_are_found_with_their_head_count() -> None:
    source = bits(16)
    target = source[row_order(16, rotary_heads=2)]
    found = find_placement(
        source,
        target,
        as_bits=as_they_are,
        tensor="t",
        stored=TensorType.BF16,
        expert=3,
        head_counts=[4, 2],
    )
    assert found == Placement(tensor="t", stored=TensorType.BF16, rotary_heads=2, expert=3)


def test_other_numbers_are_not_placed() -> None:
    assert find(bits(8), bits(8, seed=1)) is None
    assert find(bits(8), bits(4)) is None
