"""How the tensors of a checkpoint lie in the GGUF that the converter made of it.

Rows may be reordered (llama.cpp interleaves rotary halves of queries and keys), experts are
stacked. Both are found by comparing numbers, not by trusting names: a placement is only known once
every bit agreed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType

# Numbers that are compared at once.
ELEMENTS_AT_ONCE: Final = 1 << 18

AsBits = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a checkpoint tensor went.

    `rotary_heads` is 0 for rows in their own order, otherwise the heads over which rows were
    interleaved; `expert` is the slice of a stacked tensor. `stored` is the checkpoint's own type,
    which may be narrower than the GGUF's.
    """

    tensor: str
    stored: TensorType
    rotary_heads: int = 0
    expert: int | None = None


def row_order(row_count: int, *, rotary_heads: int) -> NDArray[np.intp] | None:
    """Returns for each row of the GGUF the row of the checkpoint, or None when they are the same.

    The converter's permutation: (head, half, pair) becomes (head, pair, half).
    """
    if rotary_heads == 0:
        return None
    rows = np.arange(row_count).reshape(rotary_heads, 2, row_count // rotary_heads // 2)
    return rows.swapaxes(1, 2).reshape(row_count)


def find_placement(
    source: NDArray[np.generic],
    target_bits: NDArray[np.generic],
    *,
    as_bits: AsBits,
    tensor: str,
    stored: TensorType,
    expert: int | None,
    head_counts: Sequence[int],
) -> Placement | None:
    """Returns how a matrix was placed, or None when no known way gives the same bits.

    Args:
        source: the matrix of the checkpoint, (rows, columns).
        target_bits: the matrix in the file, same shape.
        as_bits: converts rows of the source to bits of the target's type.
        head_counts: numbers of heads that may have been interleaved.
    """
    if source.shape != target_bits.shape:
        return None
    row_count = source.shape[0]
    if _equal_in_order(source, target_bits, None, as_bits):
        return Placement(tensor=tensor, stored=stored, expert=expert)
    for heads in dict.fromkeys(head_counts):
        if heads <= 0 or row_count % (2 * heads) != 0:
            continue
        order = row_order(row_count, rotary_heads=heads)
        if order is not None and _equal_in_order(source, target_bits, order, as_bits):
            return Placement(tensor=tensor, stored=stored, rotary_heads=heads, expert=expert)
    return None


def _equal_in_order(
    source: NDArray[np.generic],
    target: NDArray[np.generic],
    order: NDArray[np.intp] | None,
    as_bits: AsBits,
) -> bool:
    """Compares in slabs, so that a large matrix is never copied or converted whole."""
    rows = max(1, ELEMENTS_AT_ONCE // max(1, source[:1].size))
    for start in range(0, len(source), rows):
        part = slice(start, start + rows)
        taken = source[part] if order is None else source[order[part]]
        if not np.array_equal(as_bits(taken), target[part]):
            return False
    return True
