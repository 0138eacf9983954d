"""Which examples share a row, in which order they come, and which are held out.

All of it is a pure function of counts, lengths and a seed: every attempt of a run, on any machine,
sees the same batches.
"""

import bisect
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lexicon.faults import Fault, FaultCode

# Examples are sorted by length inside such a window only: at large the order stays random.
WINDOW_EXAMPLES = 4096
# Streams of the one seed that must not repeat each other.
_HOLDOUT_STREAM = 0x484F4C44

Indices = npt.NDArray[np.int64]


def shuffle_order(count: int, *, seed: int, epoch: int) -> Indices:
    """A permutation of `range(count)`, another one for each epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def pack(lengths: Sequence[int], *, row_tokens: int, seed: int) -> list[list[int]]:
    """Rows of example indices whose lengths sum to at most `row_tokens` each.

    Best-fit decreasing inside windows of a seeded shuffle: every example is in exactly one row;
    the fullest row that still has room takes it.

    Raises:
        AssertionError: An example is longer than a row; truncation comes before packing.
    Source: Johnson 1973, "Near-optimal bin packing algorithms".
    """
    assert all(0 <= length <= row_tokens for length in lengths), "an example is longer than a row"
    order = shuffle_order(len(lengths), seed=seed, epoch=0).tolist()
    rows: list[list[int]] = []
    for begin in range(0, len(order), WINDOW_EXAMPLES):
        window = sorted(order[begin : begin + WINDOW_EXAMPLES], key=lambda index: -lengths[index])
        rows.extend(_best_fit(window, lengths, row_tokens=row_tokens))
    return rows


def unpack(rows: Sequence[Sequence[int]]) -> list[int]:
    """All example indices of packed rows, sorted."""
    return sorted(index for row in rows for index in row)


def holdout_count(count: int, *, ratio: float) -> int:
    """Examples held out: the share rounded down, but at least one where there are two."""
    if ratio <= 0 or count < 2:
        return 0
    return min(count - 1, max(1, math.floor(count * ratio)))


def holdout_split(count: int, *, ratio: float, seed: int) -> tuple[Indices, Indices]:
    """(training indices, held-out indices), both ascending, disjoint, together all of them."""
    held = holdout_count(count, ratio=ratio)
    order = np.random.default_rng([seed, _HOLDOUT_STREAM]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def check_samples_per_run(*, samples_per_run: int, row_count: int, ratio: float) -> None:
    """Refuses slices of a continual training that would reach into the held-out rows.

    Args:
        ratio: share of the rows that is held out; 0 when nothing validates.
    Raises:
        Fault: CONFIG_INVALID with the largest slice.
    """
    pool = row_count - holdout_count(row_count, ratio=ratio)
    if samples_per_run > pool:
        suggestion = f"Reduce --samples (Python: samples_per_run) below {pool}"
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"samples_per_run exceeds training pool: {samples_per_run} of {pool} rows, "
            f"{row_count - pool} of {row_count} being held out for validation. {suggestion}",
            remedy=suggestion,
            samples_per_run=samples_per_run,
            pool=pool,
        )


def _best_fit(window: Sequence[int], lengths: Sequence[int], *, row_tokens: int) -> list[list[int]]:
    rows: list[list[int]] = []
    # (room left, row), ascending: the first with enough room is the fullest one that fits.
    open_rows: list[tuple[int, int]] = []
    for index in window:
        length = lengths[index]
        place = bisect.bisect_left(open_rows, (length, -1))
        if place == len(open_rows):
            rows.append([index])
            room, row = row_tokens - length, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
            rows[row].append(index)
            room -= length
        bisect.insort(open_rows, (room, row))
    return rows
