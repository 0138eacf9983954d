"""Numbered rows tell where a conversion puts rows of weights, and when it does more than that."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain.row_moves import WIDTH, numbered, read_moves


def sources(traced: np.ndarray) -> list[int] | None:
    moves = read_moves(traced)
    return None if moves is None else moves.sources(0, moves.row_count).tolist()


@given(order=st.permutations(range(12)), first=st.integers(1, 10**9))
def test_any_order_of_rows_is_read_off(order: list[int], first: int) -> None:
    rows = numbered(12, first=first)
    assert sources(rows[order]) == [first + row for row in order]


@given(st.lists(st.integers(0, 30), min_size=1), st.integers(0, 40), st.integers(0, 40))
def test_any_part_of_the_rows_can_be_asked_for(order: list[int], one: int, other: int) -> None:
    """Rows may be left out, or stand more than once."""
    moves = read_moves(numbered(31, first=1)[order])
    assert moves is not None
    first, end = sorted(min(place, len(order)) for place in (one, other))
    assert moves.sources(first, end).tolist() == [row + 1 for row in order[first:end]]


def test_rotary_halves_and_stacks_are_moves() -> None:
    rows = numbered(8, first=1)
    interleaved = rows.reshape(2, 2, 2, WIDTH).swapaxes(1, 2).reshape(8, WIDTH)
    assert sources(interleaved) == [1, 3, 2, 4, 5, 7, 6, 8]
    stacked = np.stack([numbered(2, first=5), numbered(2, first=1)])
    assert sources(stacked) == [5, 6, 1, 2]


def test_rows_that_follow_each_other_are_one_run() -> None:
    moves = read_moves(numbered(100_000, first=7))
    assert moves is not None
    assert moves.target_first.tolist() == [0]
    assert moves.source_first.tolist() == [7]


@pytest.mark.parametrize(
    "conversion",
    [
        lambda rows: rows + 1,
        lambda rows: rows * 2,
        lambda rows: rows / 2,
        lambda rows: rows[:, ::-1],
        lambda rows: rows.T,
        lambda rows: rows[:, :3],
        lambda rows: np.concatenate([rows, rows], axis=1),
        lambda rows: np.concatenate([rows, np.zeros((1, WIDTH))]),
        lambda rows: rows.astype(np.float32),
        lambda rows: rows.reshape(-1),
        lambda rows: rows[:0],
        lambda rows: np.where(rows == 7, np.nan, rows),
        lambda rows: (rows[:5] + rows[1:]) / 2,
    ],
)
def test_whatever_else_is_done_is_no_move(
    conversion: Callable[[np.ndarray], np.ndarray],
) -> None:
    assert read_moves(conversion(numbered(6, first=1))) is None
