"""Which type each tensor of a mix gets: llama.cpp's own plan for the mixes that we make.

Sensitive tensors (values, down projections, the output) get more bits, some layers more than
others. The order of the tensors matters, because rules count the layers they have seen.
Source: `llama_tensor_get_type_impl` and its neighbours in src/llama-quant.cpp of llama.cpp; the
tests compare with `llama_model_quantize(dry_run)` over shapes, architectures and mixes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from exporter.domain.quantization import Quantization, TensorType

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")

# Weights that stay as they are although their name ends in `weight`: routers, convolutions and
# small matrices of architectures whose quality depends on them.
_KEPT_PARTS: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", ".rel_pos", ".patch_embd",
    ".patch_merger",
)  # fmt: skip
_KEPT_NAMES: Final = frozenset({"position_embd.weight", "token_types.weight"})

# Where a row is no multiple of 256, the nearest type with blocks of 32 takes over.
_SMALL_BLOCK: Final = {
    TensorType.Q2_K: TensorType.Q4_0,
    TensorType.Q3_K: TensorType.Q4_0,
    TensorType.Q4_K: TensorType.Q5_0,
    TensorType.Q5_K: TensorType.Q5_1,
    TensorType.Q6_K: TensorType.Q8_0,
}

_SEVENTY_BILLION_LAYERS: Final = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}

Role = Literal[
    "output", "token_embd", "qkv", "kv_b", "v", "k", "q", "attn_output", "up", "gate", "down",
    "other",
]  # fmt: skip
_ROLE_PARTS: Final[Sequence[tuple[str, Role]]] = (
    ("attn_qkv.weight", "qkv"),
    ("attn_kv_b.weight", "kv_b"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """A tensor as the plan sees it; `dimensions` are ggml's, the row length first."""

    name: str
    dimensions: tuple[int, ...]
    stored_type: TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the plan needs to know of the whole model, from the GGUF's header."""

    architecture: str
    layer_count: int
    head_count: int
    head_count_kv: int
    expert_count: int

    @property
    def query_group_size(self) -> int:
        """Query heads that share one key head; 0 without attention."""
        return self.head_count // self.head_count_kv if self.head_count_kv else 0

    @property
    def is_seventy_billion(self) -> bool:
        layers = _SEVENTY_BILLION_LAYERS.get(self.architecture)
        if layers != self.layer_count:
            return False
        return self.architecture != "llama" or self.head_count != self.head_count_kv


def file_order(name: str) -> tuple[int, bytes]:
    """Key that sorts tensors as llama.cpp writes them: without a layer first, then by layer."""
    match = _BLOCK.match(name)
    return (int(match.group(1)) if match else -1), name.encode()


def plan_types(
    tensors: Sequence[TensorShape], model: ModelFacts, mix: Quantization
) -> list[TensorType]:
    """Returns the type of each tensor, in the order given, which must be `file_order`."""
    planner = _Planner(tensors, model, mix)
    return [planner.decide(tensor) for tensor in tensors]


def may_quantize(tensor: TensorShape) -> bool:
    """Whether a tensor may change its type: matrices of weights that are not norms."""
    name = tensor.name
    # ggml ignores trailing dimensions of size 1 when it counts them.
    real_dimensions = max(
        (i + 1 for i, size in enumerate(tensor.dimensions) if size > 1), default=1
    )
    if real_dimensions < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT_PARTS)


def role_of(name: str) -> Role:
    """Returns what a tensor does in its layer, as far as the plan distinguishes."""
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    return next((role for part, role in _ROLE_PARTS if part in name), "other")


class _Planner:
    """Walks the tensors once and counts, as the reference does."""

    def __init__(
        self, tensors: Sequence[TensorShape], model: ModelFacts, mix: Quantization
    ) -> None:
        roles = [role_of(tensor.name) for tensor in tensors]
        self._model = model
        self._mix = mix
        self._is_tied = "output" not in roles
        self._value_count = sum(role in {"v", "qkv", "kv_b"} for role in roles)
        self._values_seen = 0
        self._downs_seen = 0

    def decide(self, tensor: TensorShape) -> TensorType:
        if not may_quantize(tensor):
            return tensor.stored_type
        chosen = self._mix.default_type
        if not chosen.is_quantized:
            return chosen
        role = role_of(tensor.name)
        return _fitting(self._wanted(role, tensor, chosen), tensor.dimensions[0])

    def _wanted(self, role: Role, tensor: TensorShape, chosen: TensorType) -> TensorType:
        """The type by role, before the row length is looked at."""
        if role == "output" or (role == "token_embd" and self._is_tied):
            return self._output_type(tensor.dimensions[0], chosen)
        match role:
            case "v" | "qkv" | "kv_b":
                return self._value_type(chosen)
            case "k" if self._model.expert_count == 8:
                return TensorType.Q8_0
            case "attn_output":
                return self._attention_output_type(chosen)
            case "down":
                return self._down_type(tensor.name, chosen)
            case _:
                return chosen

    def _output_type(self, column_count: int, chosen: TensorType) -> TensorType:
        if self._model.architecture == "falcon" or column_count % chosen.block_elements != 0:
            return TensorType.Q8_0
        return chosen if chosen is TensorType.Q8_0 else TensorType.Q6_K

    def _value_type(self, chosen: TensorType) -> TensorType:
        index, self._values_seen = self._values_seen, self._values_seen + 1
        match self._mix:
            case Quantization.Q2_K:
                wide = self._model.query_group_size >= 4
                chosen = TensorType.Q4_K if wide else TensorType.Q3_K
            case Quantization.Q3_K_M:
                chosen = TensorType.Q5_K if index < 2 else TensorType.Q4_K
            case Quantization.Q4_K_M | Quantization.Q5_K_M if _more_bits(index, self._value_count):
                chosen = TensorType.Q6_K
            case _:
                pass
        if self._model.is_seventy_billion and chosen in {TensorType.Q3_K, TensorType.Q4_K}:
            chosen = TensorType.Q5_K
        return TensorType.Q8_0 if self._model.expert_count == 8 else chosen

    def _attention_output_type(self, chosen: TensorType) -> TensorType:
        if self._model.architecture == "falcon":
            return chosen
        if self._model.expert_count == 8:
            raised = {Quantization.Q2_K, Quantization.Q3_K_M, Quantization.Q4_K_M}
            return TensorType.Q5_K if self._mix in raised else chosen
        match self._mix:
            case Quantization.Q2_K:
                return TensorType.Q3_K
            case Quantization.Q3_K_M:
                return TensorType.Q4_K
            case _:
                return chosen

    def _down_type(self, name: str, chosen: TensorType) -> TensorType:
        layer, self._downs_seen = self._downs_seen, self._downs_seen + 1
        if self._model.expert_count > 1:
            layer = file_order(name)[0]
        count = self._model.layer_count
        falcon = self._model.architecture == "falcon"
        more = _more_bits(layer, count)
        match self._mix:
            case Quantization.Q2_K:
                return TensorType.Q3_K
            case Quantization.Q3_K_M if layer < count // 16:
                return TensorType.Q5_K
            case Quantization.Q3_K_M if not falcon or more:
                return TensorType.Q4_K
            case Quantization.Q4_K_M if falcon:
                if layer < count // 16:
                    return TensorType.Q6_K
                return TensorType.Q5_K if more else TensorType.Q4_K
            case Quantization.Q4_K_M | Quantization.Q5_K_M if more:
                return TensorType.Q6_K
            case _:
                return chosen


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers and every third between them."""
    first = count // 8
    return index < first or index >= 7 * count // 8 or (index - first) % 3 == 2


def _fitting(wanted: TensorType, column_count: int) -> TensorType:
    if column_count % wanted.block_elements == 0:
        return wanted
    fallback = _SMALL_BLOCK.get(wanted, wanted)
    return fallback if column_count % fallback.block_elements == 0 else TensorType.F16
