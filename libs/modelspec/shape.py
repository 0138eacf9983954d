"""A model's config.json as numbers, read by an allow-list and never executed.

Only the fields below are read. Fields that name code (`auto_map` and similar ones) are reported and
never followed.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lexicon.faults import Fault, FaultCode

MAX_NESTING = 8
# Fields by which a config has made a library import or download code.
_CODE_FIELDS = frozenset(
    {
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "auto_map",
        "custom_pipelines",
        "trust_remote_code",
    }
)


class Layout(enum.StrEnum):
    """How a decoder layer is divided into matrices."""

    SPLIT = "split"
    FUSED = "fused"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Properties of an architecture class.

    Attributes:
        qkv_bias: whether q, k and v have biases when the config does not say; None to read it.
        head_norms: norms over the query and key heads.
        layer_norms: norms over the hidden vector in a layer.
        tied_by_default: the default of a config without `tie_word_embeddings`.
        needs_sentencepiece: the GGUF converter requires `tokenizer.model` for it.
    """

    name: str
    family: str
    layout: Layout = Layout.SPLIT
    qkv_bias: bool | None = None
    head_norms: int = 0
    layer_norms: int = 2
    tied_by_default: bool = False
    needs_sentencepiece: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="Gemma2ForCausalLM",
            family="gemma",
            layer_norms=4,
            tied_by_default=True,
            needs_sentencepiece=True,
        ),
        Architecture(
            name="Gemma3ForCausalLM",
            family="gemma",
            layer_norms=4,
            head_norms=2,
            tied_by_default=True,
        ),
        Architecture(
            name="GemmaForCausalLM",
            family="gemma",
            tied_by_default=True,
            needs_sentencepiece=True,
        ),
        Architecture(name="GraniteForCausalLM", family="granite"),
        Architecture(name="LlamaForCausalLM", family="llama"),
        Architecture(name="MistralForCausalLM", family="mistral"),
        Architecture(name="MixtralForCausalLM", family="mixtral", layout=Layout.EXPERTS),
        Architecture(
            name="Phi3ForCausalLM", family="phi", layout=Layout.FUSED, needs_sentencepiece=True
        ),
        Architecture(name="Qwen2ForCausalLM", family="qwen", qkv_bias=True),
        Architecture(name="Qwen3ForCausalLM", family="qwen", head_norms=2),
        Architecture(name="SmolLM3ForCausalLM", family="smollm"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModule:
    """A matrix that occurs `count` times, all of one size, in the whole model."""

    in_features: int
    out_features: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a causal language model.

    Attributes:
        head_size: width of one attention head.
        feed_forward_size: width of the gated feed-forward, of one expert where there are several.
        expert_count: 1 for a dense model.
        code_fields: fields of the config that name code; never followed.
    """

    architecture: Architecture
    vocabulary_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_size: int
    feed_forward_size: int
    expert_count: int
    experts_per_token: int
    context_tokens: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    code_fields: tuple[str, ...] = ()

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.head_count * self.head_size

    @property
    def key_size(self) -> int:
        """Width of all key heads, which is also that of all value heads."""
        return self.kv_head_count * self.head_size

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """The shape that a config.json describes.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED with the architecture's name,
                MODEL_CONFIG_INVALID for a field that is missing or out of range.
        """
        architecture = _architecture(config)
        read = _Reader(config)
        hidden_size = read.integer("hidden_size", maximum=1 << 16)
        head_count = read.integer("num_attention_heads", maximum=1024)
        kv_head_count = read.integer("num_key_value_heads", maximum=1024, default=head_count)
        if head_count % kv_head_count:
            raise _invalid("num_attention_heads is no multiple of num_key_value_heads")
        experts = architecture.layout is Layout.EXPERTS
        expert_count = read.integer("num_local_experts", maximum=1024) if experts else 1
        bias = read.flag("attention_bias", default=False)
        return cls(
            architecture=architecture,
            vocabulary_size=read.integer("vocab_size", maximum=1 << 22),
            hidden_size=hidden_size,
            layer_count=read.integer("num_hidden_layers", maximum=1024),
            head_count=head_count,
            kv_head_count=kv_head_count,
            head_size=read.integer(
                "head_dim", maximum=4096, default=max(1, hidden_size // head_count)
            ),
            feed_forward_size=read.integer("intermediate_size", maximum=1 << 18),
            expert_count=expert_count,
            experts_per_token=(
                read.integer("num_experts_per_tok", maximum=expert_count) if experts else 1
            ),
            context_tokens=read.integer("max_position_embeddings", maximum=1 << 26),
            tied_embeddings=read.flag("tie_word_embeddings", default=architecture.tied_by_default),
            qkv_bias=bias if architecture.qkv_bias is None else architecture.qkv_bias,
            output_bias=bias,
            mlp_bias=read.flag("mlp_bias", default=False),
            code_fields=_code_fields(config),
        )

    def linear_modules(self) -> dict[str, LinearModule]:
        """The matrices of the decoder layers that an adapter can be put on, by module name.

        Experts are stored as one block of parameters, which no adapter can target.
        """
        hidden, forward, layers = self.hidden_size, self.feed_forward_size, self.layer_count
        if self.architecture.layout is Layout.FUSED:
            return {
                "qkv_proj": _module(hidden, self.query_size + 2 * self.key_size, layers),
                "o_proj": _module(self.query_size, hidden, layers),
                "gate_up_proj": _module(hidden, 2 * forward, layers),
                "down_proj": _module(forward, hidden, layers),
            }
        modules = {
            "q_proj": _module(hidden, self.query_size, layers),
            "k_proj": _module(hidden, self.key_size, layers),
            "v_proj": _module(hidden, self.key_size, layers),
            "o_proj": _module(self.query_size, hidden, layers),
        }
        if self.architecture.layout is Layout.SPLIT:
            modules |= {
                "gate_proj": _module(hidden, forward, layers),
                "up_proj": _module(hidden, forward, layers),
                "down_proj": _module(forward, hidden, layers),
            }
        return modules

    def parameter_count(self) -> int:
        """All parameters, tied embeddings once."""
        per_layer = (
            self.hidden_size * (self.query_size + 2 * self.key_size)
            + self.query_size * self.hidden_size
            + self.expert_count * 3 * self.hidden_size * self.feed_forward_size
            + self.architecture.layer_norms * self.hidden_size
            + self.architecture.head_norms * self.head_size
        )
        if self.architecture.layout is Layout.EXPERTS:
            per_layer += self.expert_count * self.hidden_size
        if self.qkv_bias:
            per_layer += self.query_size + 2 * self.key_size
        if self.output_bias:
            per_layer += self.hidden_size
        if self.mlp_bias:
            per_layer += 2 * self.feed_forward_size + self.hidden_size
        embeddings = self.vocabulary_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.layer_count * per_layer + embeddings + self.hidden_size

    def active_parameter_count(self) -> int:
        """Parameters that one token passes through: of the experts only the chosen ones."""
        idle = self.expert_count - self.experts_per_token
        return self.parameter_count() - (
            self.layer_count * idle * 3 * self.hidden_size * self.feed_forward_size
        )


class _Reader:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def integer(self, field: str, *, maximum: int, default: int | None = None) -> int:
        value = self._config.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise _invalid(f"{field} is missing or not a whole number", field=field)
        if not 1 <= value <= maximum:
            raise _invalid(f"{field} is not between 1 and {maximum}", field=field)
        return value

    def flag(self, field: str, *, default: bool) -> bool:
        value = self._config.get(field)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise _invalid(f"{field} is neither true nor false", field=field)
        return value


def _architecture(config: Mapping[str, Any]) -> Architecture:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise _invalid("architectures is not a list of one name", field="architectures")
    name = names[0]
    if name not in ARCHITECTURES:
        shown = "".join(letter for letter in name if letter.isalnum() or letter == "_")[:80]
        raise Fault(
            FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED,
            f"Unsupported architecture: {shown}",
            variant=None if name.endswith("ForCausalLM") else "value_error",
            architecture=shown,
        )
    return ARCHITECTURES[name]


def _code_fields(config: object) -> tuple[str, ...]:
    """Names of fields about code, at every depth down to the limit."""
    found: set[str] = set()
    level: list[object] = [config]
    for _ in range(MAX_NESTING):
        following: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                found |= _CODE_FIELDS & value.keys()
                following.extend(value.values())
            elif isinstance(value, list):
                following.extend(value)
        level = following
    return tuple(sorted(found))


def _module(in_features: int, out_features: int, count: int) -> LinearModule:
    return LinearModule(in_features=in_features, out_features=out_features, count=count)


def _invalid(what: str, **metadata: str) -> Fault:
    return Fault(FaultCode.MODEL_CONFIG_INVALID, f"The model's config.json: {what}", **metadata)
