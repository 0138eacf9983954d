"""Where rows go when tensors are reshaped, permuted, stacked or split: read off rows of numbers.

A conversion that only moves whole rows does to a tensor of row numbers what it does to the weights.
So a narrow stand-in of every tensor, whose rows say which they are, goes through the conversion
instead, and what comes out gives the source of every row without a weight being read.

Letters: W columns of a stand-in, R rows.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Columns of a stand-in: a prime, so that whatever splits or joins columns is seen to do so.
WIDTH: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRuns:
    """For every row of a target the number of the row that it came from.

    Rows that follow each other in both are one run: `target_first` (runs,) ascends from 0,
    `source_first` (runs,) are numbers of rows over all sources, from 1.
    """

    target_first: NDArray[np.int64]
    source_first: NDArray[np.int64]
    row_count: int

    def sources(self, first: int, end: int) -> NDArray[np.int64]:
        """Numbers of the rows that belong at rows `first` to `end`."""
        rows = np.arange(first, end)
        runs = np.searchsorted(self.target_first, rows, side="right") - 1
        numbers: NDArray[np.int64] = self.source_first[runs] + rows - self.target_first[runs]
        return numbers


def numbered(row_count: int, *, first: int) -> NDArray[np.float64]:
    """Rows that say which they are, (R, W): row r holds (first + r) * W + column.

    float64 holds every number below 2^53, more than any model has.
    """
    return np.arange(first * WIDTH, (first + row_count) * WIDTH, dtype=np.float64).reshape(
        row_count, WIDTH
    )


def read_moves(traced: NDArray[Any]) -> RowRuns | None:
    """Returns the sources of a tensor that was made of numbered rows.

    None when anything else was done than moving whole rows: arithmetic, padding, other columns.
    """
    if traced.dtype != np.float64 or traced.ndim < 2 or traced.shape[-1] != WIDTH:
        return None
    rows = traced.reshape(-1, WIDTH)
    if len(rows) == 0 or not np.array_equal(rows, rows[:, :1] + np.arange(WIDTH)):
        return None
    numbers = rows[:, 0] / WIDTH
    sources = numbers.astype(np.int64)
    if sources.min() < 1 or not np.array_equal(sources, numbers):
        return None
    is_first = np.concatenate([[True], np.diff(sources) != 1])
    target_first = np.flatnonzero(is_first).astype(np.int64)
    return RowRuns(
        target_first=target_first, source_first=sources[target_first], row_count=len(sources)
    )
