"""The merged rows of a tensor: base + scale · B · A, rounded exactly as PEFT's own merge rounds.

Rows are made block by block in the order of the GGUF; nothing larger than a block exists in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.domain.adapter import Adapter, MatrixDelta
from exporter.domain.gguf_format import TensorInfo
from exporter.domain.layout import Placement, row_order
from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel.kernel import rounded
from exporter.engine.weights import GgufFile, SafetensorsFile
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
class Change:
    """What happens to the rows of one tensor, or of one expert's slice of it.

    `a` is (rank, in); `b` is (out, rank) with its rows already in the order of the GGUF. A
    replacement has rows of its own in their place. `scale` multiplies the delta; `factors` (out, 1)
    are DoRA's.
    """

    a: NDArray[np.float32] | None = None
    b: NDArray[np.float32] | None = None
    scale: float = 0.0
    factors: NDArray[np.float32] | None = None
    replacement: NDArray[np.float32] | None = None


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

        The numbers are already rounded to the base's own type, because that is what a merged
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

    def _changed(
        self, stored: NDArray[np.uint8], change: Change, start: int, end: int
    ) -> NDArray[np.float32]:
        """Rows `start` to `end` of what the change is for."""
        kind = self.info.type
        if change.replacement is not None:
            return rounded(change.replacement[start:end], kind)
        assert change.a is not None
        assert change.b is not None
        b = change.b[start:end]
        if change.factors is None:
            return self.merge(stored, kind, a=change.a, b=b, scale=change.scale)
        base = ggml.decode(stored, kind, column_count=self.info.column_count)
        directed = base + (b @ change.a) * np.float32(change.scale)
        return rounded(directed * change.factors[start:end], kind)


def merge_plan(
    base: GgufFile,
    placements: Mapping[str, Placement],
    adapter: Adapter,
    weights: SafetensorsFile,
    *,
    merge: Merge,
) -> dict[str, MergedTensor]:
    """Returns every tensor of the base by name, with the adapter's changes where it has any.

    Raises:
        Fault: EXPORT_TENSOR_UNMAPPED when the adapter changes what has no place, EXPORT_WRONG_BASE
            when a shape does not fit, EXPORT_ADAPTER_UNTRAINED when all deltas are zero.
    """
    changes: dict[str, dict[int | None, Change]] = {}
    is_trained = bool(adapter.replacements)
    for delta in adapter.deltas:
        placement, info = _place(base, placements, delta.target)
        change = _delta_change(delta, placement, info, weights)
        is_trained = is_trained or bool(change.b is not None and np.any(change.b))
        changes.setdefault(info.name, {})[placement.expert] = change
    for target, name in adapter.replacements.items():
        placement, info = _place(base, placements, target)
        rows = weights.floats(name).reshape(-1, info.column_count)
        order = row_order(rows.shape[0], rotary_heads=placement.rotary_heads)
        _require_shape(target, rows.shape, _slice_shape(info, placement))
        change = Change(replacement=rows if order is None else rows[order])
        changes.setdefault(info.name, {})[placement.expert] = change
    if not is_trained:
        raise Fault(FaultCode.EXPORT_ADAPTER_UNTRAINED)
    return {
        info.name: MergedTensor(
            base=base, info=info, changes=changes.get(info.name, {}), merge=merge
        )
        for info in base.header.tensors
    }


def _place(
    base: GgufFile, placements: Mapping[str, Placement], target: str
) -> tuple[Placement, TensorInfo]:
    placement = placements.get(target)
    if placement is None:
        raise Fault(
            FaultCode.EXPORT_TENSOR_UNMAPPED,
            f"The adapter changes {target}, which has no place in the GGUF of its base.",
            tensor=target,
        )
    return placement, base.by_name[placement.tensor]


def _delta_change(
    delta: MatrixDelta, placement: Placement, info: TensorInfo, weights: SafetensorsFile
) -> Change:
    a, b = weights.floats(delta.a), weights.floats(delta.b)
    if delta.is_embedding:
        # An embedding's delta is (B @ A).T, so that the roles of the factors swap.
        a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"The adapter has numbers that are not finite in {delta.target}.",
        )
    _require_shape(delta.target, (b.shape[0], a.shape[1]), _slice_shape(info, placement))
    order = row_order(b.shape[0], rotary_heads=placement.rotary_heads)
    return Change(a=a, b=b if order is None else b[order], scale=delta.scale)


def _slice_shape(info: TensorInfo, placement: Placement) -> tuple[int, int]:
    rows = info.row_count if placement.expert is None else info.dimensions[1]
    return rows, info.column_count


def _require_shape(target: str, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise Fault(
            FaultCode.EXPORT_WRONG_BASE,
            f"The adapter expects {target} with shape {list(found)}, the base has {list(wanted)}.",
            tensor=target,
        )
