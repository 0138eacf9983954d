"""The merged rows of a tensor: base + scale · B · A, in float64 and rounded once.

The order of operations is stated in `kernel/merge.cc` and is the same on every machine.
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
from exporter.engine.kernel.kernel import rounded
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
        into: TensorType,
        magnitude: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """scale · B · A for a matrix, or for one expert's slice of it.

    `a` is (rank, in); `b` is (out, rank) with its rows in the order of the GGUF, as is DoRA's
    `magnitude` (out).
    Source: Liu et al. 2024, arXiv:2402.09353 (DoRA), equation 5, the norm over the input dimension.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None


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
        """Whether the changes move any number of these rows."""
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
        return self.merge(
            stored,
            self.info.type,
            a=by.a,
            b=by.b[start:end],
            scale=by.scale,
            into=change.stored,
            magnitude=None if by.magnitude is None else by.magnitude[start:end],
        )
