"""Which tensor of the base changes by what: the adapter's names brought to those of the GGUF."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.adapter import Adapter, MatrixDelta
from exporter.domain.experts import ExpertStack, checkpoint_name, expert_stack
from exporter.domain.gguf_format import TensorInfo
from exporter.domain.layout import Placement, row_order
from exporter.engine import ggml
from exporter.engine.kernel.kernel import rounded
from exporter.engine.merge import Change, LowRank, Merge, MergedTensor, Replacement
from exporter.engine.weights import GgufFile, SafetensorsFile
from lexicon.faults import Fault, FaultCode
from lexicon.lora_config import scale_of

EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
# Models for which llama.cpp takes the embedding for the head, whether a file has a head or not.
# Source: src/models of llama.cpp.
_ALWAYS_TIED: Final = frozenset({"gemma", "gemma2", "cohere2", "command-r", "openelm"})
# What checkpoints call the head of a causal language model.
_HEAD_TARGET: Final = "lm_head.weight"


def merge_plan(
    base: GgufFile,
    placements: Mapping[str, Placement],
    adapter: Adapter,
    weights: SafetensorsFile,
    *,
    merge: Merge,
) -> dict[str, MergedTensor]:
    """Returns every tensor of the file by name, with the adapter's changes where it has any.

    The tensors are those of the base and, where an adapter changes one end of a model whose
    embedding is also its head, the other end as a tensor of its own.

    Raises:
        Fault: EXPORT_TENSOR_UNMAPPED when the adapter changes what has no place, EXPORT_WRONG_BASE
            when a shape does not fit, EXPORT_ADAPTER_UNTRAINED when all deltas are zero,
            MODEL_WEIGHTS_INVALID for numbers that are not finite.
    """
    placements = {**placements, **_tied_head(base, placements)}
    planner = _Planner(base=base, placements=placements, adapter=adapter, weights=weights)
    changes: dict[str, dict[int | None, Change]] = {}
    is_trained = bool(adapter.replacements)
    for target, placement, change in planner.changes():
        if isinstance(change.by, LowRank):
            is_trained = is_trained or bool(np.any(change.by.b))
        found = changes.setdefault(placement.tensor, {})
        if found and (placement.expert is None or placement.expert in found or None in found):
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                f"The adapter is damaged: it changes {target} twice.",
                tensor=target,
            )
        found[placement.expert] = change
    if not is_trained:
        raise Fault(FaultCode.EXPORT_ADAPTER_UNTRAINED)
    infos = list(base.header.tensors)
    if _is_untied(base, changes, ties_weights=adapter.ties_weights):
        infos.append(replace(base.by_name[EMBEDDING], name=HEAD))
    return {
        info.name: MergedTensor(
            base=base, info=info, changes=changes.get(info.name, {}), merge=merge
        )
        for info in infos
    }


def _tied_head(base: GgufFile, placements: Mapping[str, Placement]) -> dict[str, Placement]:
    """The place of the head where the embedding is the head too; empty elsewhere."""
    if HEAD in base.by_name:
        return {}
    embedding = next((p for p in placements.values() if p.tensor == EMBEDDING), None)
    return {} if embedding is None else {_HEAD_TARGET: replace(embedding, tensor=HEAD)}


def _is_untied(
    base: GgufFile, changes: dict[str, dict[int | None, Change]], *, ties_weights: bool
) -> bool:
    """Whether one tensor becomes two, and joins the changes of both ends where it does not.

    PEFT changes the module that was targeted and no other, so that the other end keeps the rows of
    the base. With `ensure_weight_tying` both ends share their change.

    Raises:
        Fault: EXPORT_TENSOR_UNMAPPED, MODEL_WEIGHTS_INVALID.
    """
    if HEAD in base.by_name or not (EMBEDDING in changes or HEAD in changes):
        return False
    if ties_weights:
        head = changes.pop(HEAD, None)
        embedding = changes.setdefault(EMBEDDING, head or {})
        if head is not None and not _are_equal(head[None].by, embedding[None].by):
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                "The adapter ties embedding and head, and changes them in different ways.",
                tensor=_HEAD_TARGET,
            )
        return False
    architecture = base.header.text("general.architecture") or ""
    if architecture in _ALWAYS_TIED:
        raise Fault(
            FaultCode.EXPORT_TENSOR_UNMAPPED,
            f"The adapter changes the embedding or the head alone, and llama.cpp's {architecture} "
            "has one tensor for both.",
            tensor=_HEAD_TARGET,
        )
    return True


def _are_equal(one: LowRank | Replacement, other: LowRank | Replacement) -> bool:
    """Whether two changes are the same, number for number."""
    if isinstance(one, Replacement) or isinstance(other, Replacement):
        return (
            isinstance(one, Replacement)
            and isinstance(other, Replacement)
            and np.array_equal(one.rows, other.rows)
        )
    return (
        one.scale == other.scale
        and np.array_equal(one.a, other.a)
        and np.array_equal(one.b, other.b)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    base: GgufFile
    placements: Mapping[str, Placement]
    adapter: Adapter
    weights: SafetensorsFile

    def changes(self) -> Iterator[tuple[str, Placement, Change]]:
        """Every change with the tensor of the checkpoint and its place."""
        matrices = {name: self._shape(placement) for name, placement in self.placements.items()}
        for delta in self.adapter.deltas:
            a, b = self._factors(delta)
            stack = expert_stack(
                delta.module, rows=b.shape[0], columns=a.shape[1], matrices=matrices
            )
            if stack is None:
                yield delta.target, *self._matrix(delta, a, b)
            else:
                yield from self._experts(delta, stack, a, b)
        for target, name in self.adapter.base_copies.items():
            self._require_copy(target, name)
        for target, name in self.adapter.replacements.items():
            placement = self._place(target)
            rows = self.weights.floats(name)
            rows = rows.reshape(-1, self._shape(placement)[1])
            self._require_shape(target, rows.shape, placement)
            rows = _ordered(rows, placement)
            # PEFT saves a whole embedding when it is asked to, trained or not.
            if placement.tensor in {EMBEDDING, HEAD} and self._is_base_s_own(rows, placement):
                continue
            yield target, placement, Change(stored=placement.stored, by=Replacement(rows=rows))

    def _matrix(
        self, delta: MatrixDelta, a: NDArray[np.float32], b: NDArray[np.float32]
    ) -> tuple[Placement, Change]:
        placement = self._place(delta.target)
        self._require_shape(delta.target, (b.shape[0], a.shape[1]), placement)
        magnitude = None
        if delta.magnitude is not None:
            learnt = self.weights.floats(delta.magnitude).reshape(-1, 1)
            self._require_shape(delta.target, (learnt.shape[0], a.shape[1]), placement)
            magnitude = _ordered(learnt, placement)[:, 0]
        by = LowRank(
            a=a,
            b=_ordered(b, placement),
            scale=delta.scale,
            magnitude=magnitude,
        )
        return placement, Change(stored=placement.stored, by=by)

    def _experts(
        self,
        delta: MatrixDelta,
        stack: ExpertStack,
        a: NDArray[np.float32],
        b: NDArray[np.float32],
    ) -> Iterator[tuple[str, Placement, Change]]:
        if len(a) % stack.expert_count != 0:
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                f"The factors of {delta.module} do not hold the same rank for every expert.",
            )
        rank = len(a) // stack.expert_count
        scale = scale_of(self.adapter.config, stack.parameter, rank=rank)
        a_by_expert = a.reshape(stack.expert_count, rank, a.shape[1])
        b_by_expert = b.reshape(b.shape[0], rank, stack.expert_count)
        for part in stack.parts:
            placement = self._place(part.target)
            rows = b_by_expert[part.first_row : part.end_row, :, part.expert]
            by = LowRank(
                a=np.ascontiguousarray(a_by_expert[part.expert]),
                b=_ordered(np.ascontiguousarray(rows), placement),
                scale=scale,
            )
            yield part.target, placement, Change(stored=placement.stored, by=by)

    def _factors(self, delta: MatrixDelta) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        a, b = self.weights.floats(delta.a), self.weights.floats(delta.b)
        if delta.is_embedding:
            # An embedding's delta is (B @ A).T, so that the roles of the factors swap.
            a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                f"The adapter has numbers that are not finite in {delta.module}.",
            )
        return a, b

    def _require_copy(self, target: str, name: str) -> None:
        """A tensor of the base that came with the adapter must be the base's own."""
        placement = self._place(target)
        copy = self.weights.floats(name)
        self._require_shape(target, copy.shape, placement)
        if not self._is_base_s_own(_ordered(copy, placement), placement):
            raise Fault(
                FaultCode.EXPORT_WRONG_BASE,
                f"The adapter was trained on another {target} than the base has.",
                tensor=target,
            )

    def _is_base_s_own(self, rows: NDArray[np.float32], placement: Placement) -> bool:
        info = self._info(placement)
        raw = self.base.raw(info, first_row=0, row_count=info.row_count)
        own = ggml.decode(raw, info.type, column_count=info.column_count)
        return np.array_equal(rounded(rows, placement.stored), own)

    def _place(self, target: str) -> Placement:
        placement = self.placements.get(checkpoint_name(target, self.placements))
        if placement is None:
            raise Fault(
                FaultCode.EXPORT_TENSOR_UNMAPPED,
                f"The adapter changes {target}, which has no place in the GGUF of its base.",
                tensor=target,
            )
        return placement

    def _shape(self, placement: Placement) -> tuple[int, int]:
        info = self._info(placement)
        rows = info.row_count if placement.expert is None else info.dimensions[1]
        return rows, info.column_count

    def _info(self, placement: Placement) -> TensorInfo:
        """Where the base's rows lie: for the head of a tied base those of the embedding."""
        name = placement.tensor
        return self.base.by_name[
            EMBEDDING if name == HEAD and name not in self.base.by_name else name
        ]

    def _require_shape(self, target: str, found: tuple[int, ...], placement: Placement) -> None:
        wanted = self._shape(placement)
        if found != wanted:
            raise Fault(
                FaultCode.EXPORT_WRONG_BASE,
                f"The adapter expects {target} with shape {list(found)}, the base has "
                f"{list(wanted)}.",
                tensor=target,
            )


def _ordered(rows: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    order = row_order(len(rows), rotary_heads=placement.rotary_heads)
    return rows if order is None else rows[order]
