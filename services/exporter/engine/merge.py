"""The merged rows of a tensor: base + scale · B · A, rounded exactly as PEFT's own merge rounds.

Rows are made block by block in the order of the GGUF; nothing larger than a block exists in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.domain.gguf_format import TensorInfo
from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel.kernel import product, rounded
from exporter.engine.weights import GgufFile
from lexicon.faults import Fault, FaultCode


class Merge(Protocol):
    """Adds a low-rank change to stored rows; `Kernel.merge` is one."""

    def __call__(
        self,
        stored: NDArray[np.uint8],
        kind: TensorType,
        *,
        a: NDArray[np.float32],
        b: NDArray[np.float32],
        scale: float,
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """scale · B · A for a matrix, or for one expert's slice of it.

    `a` is (rank, in); `b` is (out, rank) with its rows in the order of the GGUF, as is DoRA's
    `magnitude` (out). `is_rounded_first` says that the delta itself is rounded before it is added,
    as PEFT does for bare parameters and embeddings.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None
    is_rounded_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """Rows that were trained whole, in the order of the GGUF."""

    rows: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to a tensor; `stored` is the type that the checkpoint keeps the result in."""

    stored: TensorType
    by: LowRank | Replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTensor:
    """A base tensor with its changes by expert; the key None is the whole tensor."""

    base: GgufFile
    info: TensorInfo
    changes: Mapping[int | None, Change]
    merge: Merge

    @property
    def is_touched(self) -> bool:
        return bool(self.changes)

    def rows(self, *, first: int, count: int) -> NDArray[np.float32]:
        """Returns merged rows as float32, (count, columns).

        The numbers are already rounded to the checkpoint's own type, because that is what a merged
        checkpoint would hold.

        Raises:
            Fault: MODEL_WEIGHTS_INVALID when one is not finite.
        """
        info = self.info
        stored = self.base.raw(info, first_row=first, row_count=count)
        whole = self.changes.get(None)
        if whole is not None:
            return self._changed(stored, whole, first, first + count)
        values = ggml.decode(stored, info.type, column_count=info.column_count)
        if self.changes:
            values = np.array(values)
        for expert, change in self.changes.items():
            offset = expert * info.dimensions[1] if expert is not None else 0
            start, end = max(first, offset), min(first + count, offset + info.dimensions[1])
            if start < end:
                part = slice(start - first, end - first)
                values[part] = self._changed(stored[part], change, start - offset, end - offset)
        if not np.isfinite(values).all():
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID, f"{info.name} has numbers that are not finite."
            )
        return values

    def differs(self, *, first: int, count: int) -> bool:
        """Tells whether the changes move any number of these rows."""
        stored = self.base.raw(self.info, first_row=first, row_count=count)
        base = ggml.decode(stored, self.info.type, column_count=self.info.column_count)
        return self.is_touched and not np.array_equal(base, self.rows(first=first, count=count))

    def _changed(
        self, stored: NDArray[np.uint8], change: Change, start: int, end: int
    ) -> NDArray[np.float32]:
        """Rows `start` to `end` of what the change is for."""
        by = change.by
        if isinstance(by, Replacement):
            return rounded(by.rows[start:end], change.stored)
        b = by.b[start:end]
        is_plain = by.magnitude is None and not by.is_rounded_first
        if is_plain and change.stored is self.info.type:
            return self.merge(stored, change.stored, a=by.a, b=b, scale=by.scale)
        base = ggml.decode(stored, self.info.type, column_count=self.info.column_count)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = product(b, by.a) * np.float32(by.scale)
            if by.is_rounded_first:
                delta = rounded(delta, change.stored)
            merged = base + delta
            if by.magnitude is not None:
                merged = _directed(merged, by.magnitude[start:end])
        return rounded(merged, change.stored)


def _directed(merged: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows stretched to their learnt lengths.

    Source: Liu et al. 2024, arXiv:2402.09353 (DoRA), equation 5, the norm over the input dimension.
    """
    norms = np.sqrt(np.square(merged, dtype=np.float64).sum(axis=1)).astype(np.float32)
    directed: NDArray[np.float32] = (magnitude / norms)[:, None] * merged
    return directed
