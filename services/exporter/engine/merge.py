"""The merged rows of a tensor: base + scale · B · A, rounded exactly as PEFT's own merge rounds.

Rows are made block by block in the order of the GGUF; nothing larger than a block exists in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.domain.adapter import Adapter, MatrixDelta
from exporter.domain.gguf_format import TensorInfo
from exporter.domain.layout import Placement, row_order
from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.weights import GgufFile, SafetensorsFile, to_bfloat16_bits
from lexicon.faults import Fault, FaultCode


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

    @property
    def is_touched(self) -> bool:
        return bool(self.changes)

    def rows(self, *, first: int, count: int) -> NDArray[np.float32]:
        """Returns merged rows as float32, (count, columns).

        The numbers are already rounded to the base's own type, because that is what a merged
        checkpoint would hold. Source: peft `lora.Linear.merge`: W += (B @ A) * scaling in float32,
        stored in W's type.
        """
        info = self.info
        stored = self.base.raw(info, first_row=first, row_count=count)
        values = ggml.decode(stored, info.type, column_count=info.column_count)
        if not self.changes:
            return values
        merged = np.array(values)
        for expert, change in self.changes.items():
            start, end = self._span(expert, first, count)
            if start < end:
                rows = slice(start - first, end - first)
                offset = 0 if expert is None else expert * info.dimensions[1]
                merged[rows] = _merged(merged[rows], change, start - offset, end - offset)
        return _rounded(merged, info.type)

    def _span(self, expert: int | None, first: int, count: int) -> tuple[int, int]:
        if expert is None:
            return first, first + count
        rows = self.info.dimensions[1]
        return max(first, expert * rows), min(first + count, (expert + 1) * rows)


def merge_plan(
    base: GgufFile,
    placements: Mapping[str, Placement],
    adapter: Adapter,
    weights: SafetensorsFile,
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
        info.name: MergedTensor(base=base, info=info, changes=changes.get(info.name, {}))
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


def _merged(base: NDArray[np.float32], change: Change, start: int, end: int) -> NDArray[np.float32]:
    if change.replacement is not None:
        return change.replacement[start:end]
    assert change.a is not None
    assert change.b is not None
    delta = (change.b[start:end] @ change.a) * np.float32(change.scale)
    merged = base + delta
    return merged if change.factors is None else merged * change.factors[start:end]


def _rounded(rows: NDArray[np.float32], stored: TensorType) -> NDArray[np.float32]:
    """What remains of the numbers once they have been stored in the base's type."""
    if not np.isfinite(rows).all():
        raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, "A merged weight is not a finite number.")
    match stored:
        case TensorType.BF16:
            return (to_bfloat16_bits(rows).astype(np.uint32) << 16).view(np.float32)
        case TensorType.F16:
            return ggml.to_float16(rows).astype(np.float32)
        case _:
            return rows
