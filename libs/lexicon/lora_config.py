"""What each field of a PEFT `adapter_config.json` means for the weights, and which are refused.

A field is honoured, or never affects the merged weights, or must be at its default. Fields outside
of the tables must be empty, so that a setting of a newer PEFT is refused by its name. Source:
`LoraConfig` and `lora.Linear.merge` of peft 0.21.2.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NoReturn, assert_never

from lexicon.faults import Fault, FaultCode
from lexicon.name_patterns import NamePatterns

MAX_RANK: Final = 4096
# The factor is a float32 in the merge.
_MAX_ALPHA: Final = 3.0e38
_MAX_SHOWN_CHARS: Final = 60
_DEFAULT_RANK: Final = 8
_DEFAULT_ALPHA: Final = 8.0


class Kind(StrEnum):
    """The JSON type of a field; null means the default of each."""

    BOOL = "true or false"
    NAMES = "a list of names"
    NAMES_OR_PATTERN = "a list of names or one pattern"
    LIST = "a list"
    LIST_OR_MAP = "a list or a map"
    MAP = "a map"
    TEXT = "a text"
    ANY = "anything"


# Fields that `read_config` honours; factors and modules trained whole are known from the tensors.
HONOURED: Mapping[str, Kind] = MappingProxyType(
    {
        "peft_type": Kind.TEXT,
        "r": Kind.ANY,
        "lora_alpha": Kind.ANY,
        "rank_pattern": Kind.MAP,
        "alpha_pattern": Kind.MAP,
        "use_rslora": Kind.BOOL,
        "use_dora": Kind.BOOL,
        "target_modules": Kind.NAMES_OR_PATTERN,
        "target_parameters": Kind.NAMES,
        "modules_to_save": Kind.NAMES,
        "ensure_weight_tying": Kind.BOOL,
        "init_lora_weights": Kind.ANY,
    }
)

# Fields that never affect the merged weights, with the reason.
IRRELEVANT: Mapping[str, str] = MappingProxyType(
    {
        "task_type": "chooses the class that PEFT wraps the model in",
        "auto_mapping": "names that class",
        "base_model_name_or_path": "names the base; the proof compares the base itself",
        "revision": "names the base; the proof compares the base itself",
        "peft_version": "says who wrote the file",
        "inference_mode": "freezes the factors",
        "runtime_config": "is ignored by PEFT when it loads",
        "lora_dropout": "is off outside training",
        "exclude_modules": "chose the modules; the tensors show which have factors",
        "layers_to_transform": "chose the modules; the tensors show which have factors",
        "layers_pattern": "chose the modules; the tensors show which have factors",
        "megatron_core": "names a Python module that only megatron_config uses",
        "qalora_group_size": "is read under use_qalora only",
        "loftq_config": "is read under init_lora_weights loftq only",
        "eva_config": "is read under init_lora_weights eva only, which leaves the base alone",
        "corda_config": "is read under init_lora_weights corda only",
        "lora_ga_config": "is read under init_lora_weights lora_ga only",
        "velora_config": "compresses activations for the backward pass only",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A field that must be at its default, and its effect otherwise.

    Null is a default everywhere, and nothing listed is one of lists. An empty map of settings is
    none: PEFT fills it in.
    """

    kind: Kind
    effect: str
    default: object = None


# With one of these the weights are no longer the base's own and scale · B · A.
MUST_BE_DEFAULT: Mapping[str, Refused] = MappingProxyType(
    {
        "fan_in_fan_out": Refused(
            kind=Kind.BOOL, default=False, effect="stores the weights transposed"
        ),
        "bias": Refused(kind=Kind.TEXT, default="none", effect="trains biases of the base"),
        "lora_bias": Refused(kind=Kind.BOOL, default=False, effect="adds a bias to each B"),
        "use_qalora": Refused(
            kind=Kind.BOOL, default=False, effect="averages the input in groups before A"
        ),
        "layer_replication": Refused(
            kind=Kind.LIST, effect="builds a model of other layers than the base has"
        ),
        "alora_invocation_tokens": Refused(
            kind=Kind.LIST, effect="applies the adapter to some tokens only"
        ),
        "trainable_token_indices": Refused(
            kind=Kind.LIST_OR_MAP, effect="trains single rows of the embedding"
        ),
        "megatron_config": Refused(kind=Kind.MAP, effect="splits the layers between devices"),
        "kasa_config": Refused(kind=Kind.MAP, effect="changes the base before training"),
        "monteclora_config": Refused(kind=Kind.MAP, effect="samples the factors"),
        "use_bdlora": Refused(kind=Kind.MAP, effect="stores factors as blocks of a diagonal"),
        "arrow_config": Refused(kind=Kind.MAP, effect="chooses between adapters for each token"),
    }
)

# Initial values of the factors that leave the base as it is; of mica only A is trained later.
_INITS_OF_FACTORS: Final = frozenset({"gaussian", "orthogonal", "eva", "mica"})
# These move a part of each base weight into the factors, or quantise it, so that the factors belong
# to the remainder. Saved with `path_initial_model_for_weight_conversion` they are plain LoRA of
# twice the rank, and PEFT writes `true`.
_INITS_OF_BASE: Final = re.compile(r"(?i)pissa.*|corda.*|olora|loftq|lora_ga")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The settings of an adapter that its users apply."""

    rank: int
    alpha: float
    rank_pattern: NamePatterns[int]
    alpha_pattern: NamePatterns[float]
    is_rank_stabilised: bool
    has_magnitudes: bool
    ties_weights: bool
    target_parameters: frozenset[str]

    def is_parameter(self, name: str) -> bool:
        """Whether PEFT adapts the tensor as a bare parameter."""
        parts = name.split(".")
        return any(".".join(parts[start:]) in self.target_parameters for start in range(len(parts)))


def read_config(config: Mapping[str, Any]) -> AdapterConfig:
    """Reads a decoded `adapter_config.json`.

    Raises:
        Fault: EXPORT_ADAPTER_UNSUPPORTED, with the field, for a setting that the merge does not
            follow, MODEL_WEIGHTS_INVALID for a value that is none of its field.
    """
    for field, kind in HONOURED.items():
        _require_kind(field, config.get(field), kind)
    if config.get("peft_type") != "LORA":
        if config.get("peft_type") is None:
            _invalid("peft_type", "is not set")
        refuse("peft_type", config["peft_type"], "another method than LoRA")
    _require_init(config.get("init_lora_weights", True))
    for field, value in config.items():
        if rule := MUST_BE_DEFAULT.get(field):
            _require_kind(field, value, rule.kind)
            is_default = value in (None, rule.default) or value == []
            if not is_default and not (rule.kind is Kind.LIST_OR_MAP and value == {}):
                refuse(field, value, f"which {rule.effect}")
        elif field not in HONOURED and field not in IRRELEVANT and not _is_empty(value):
            refuse(field, value, "a field that is not known")
    rank_pattern = {
        name: _rank("rank_pattern", value)
        for name, value in (config.get("rank_pattern") or {}).items()
    }
    alpha_pattern = {
        name: _alpha("alpha_pattern", value)
        for name, value in (config.get("alpha_pattern") or {}).items()
    }
    return AdapterConfig(
        rank=_rank("r", config.get("r", _DEFAULT_RANK)),
        alpha=_alpha("lora_alpha", config.get("lora_alpha", _DEFAULT_ALPHA)),
        rank_pattern=NamePatterns("rank_pattern", rank_pattern),
        alpha_pattern=NamePatterns("alpha_pattern", alpha_pattern),
        is_rank_stabilised=bool(config.get("use_rslora")),
        has_magnitudes=bool(config.get("use_dora")),
        ties_weights=bool(config.get("ensure_weight_tying")),
        target_parameters=frozenset(config.get("target_parameters") or ()),
    )


def scale_of(config: AdapterConfig, module: str, *, rank: int) -> float:
    """The factor of a module's delta: alpha / rank, or alpha / sqrt(rank) when rank-stabilised.

    Args:
        module: name by which PEFT looks up patterns; that of a bare parameter ends with its own.
        rank: what the tensors have.
    Raises:
        Fault: MODEL_WEIGHTS_INVALID when the settings give the module another rank.
    """
    wanted = config.rank_pattern.get(module, config.rank)
    if rank != wanted:
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"The adapter is damaged: {module} has factors of rank {rank}, its settings say "
            f"{wanted}.",
        )
    alpha = config.alpha_pattern.get(module, config.alpha)
    return alpha / math.sqrt(rank) if config.is_rank_stabilised else alpha / rank


def refuse(field: str, value: object, reason: str, *, variant: str | None = None) -> NoReturn:
    """Refuses a setting by its name."""
    name = field if field.isidentifier() and len(field) <= _MAX_SHOWN_CHARS else _shown(field)
    raise Fault(
        FaultCode.EXPORT_ADAPTER_UNSUPPORTED,
        f"The adapter is not supported: {name} is set to {_shown(value)}, {reason}.",
        variant=variant,
        field=name,
        value=_shown(value),
    )


def _require_init(value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, str) or value.lower() in ("true", "false"):
        _invalid("init_lora_weights", f"is {_shown(value)} instead of true, false or a method")
    if _INITS_OF_BASE.fullmatch(value):
        refuse(
            "init_lora_weights", value, "which changes the base before training", variant="residual"
        )
    if value.lower() not in _INITS_OF_FACTORS:
        refuse("init_lora_weights", value, "a method that is not known")


def _require_kind(field: str, value: object, kind: Kind) -> None:
    if value is None:
        return
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    match kind:
        case Kind.BOOL:
            fits = isinstance(value, bool)
        case Kind.NAMES:
            fits = is_names
        case Kind.NAMES_OR_PATTERN:
            fits = is_names or isinstance(value, str)
        case Kind.LIST:
            fits = isinstance(value, list)
        case Kind.LIST_OR_MAP:
            fits = isinstance(value, list | dict)
        case Kind.MAP:
            fits = isinstance(value, dict)
        case Kind.TEXT:
            fits = isinstance(value, str)
        case Kind.ANY:
            fits = True
        case _:
            assert_never(kind)
    if not fits:
        _invalid(field, f"is {_shown(value)} instead of {kind.value}")


def _rank(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        _invalid(field, f"holds {_shown(value)} instead of a rank from 1 to {MAX_RANK}")
    return value


def _alpha(field: str, value: object) -> float:
    # The comparison is exact for whole numbers beyond float and false for NaN.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -_MAX_ALPHA <= value <= _MAX_ALPHA
    ):
        _invalid(field, f"holds {_shown(value)} instead of a finite number")
    return value


def _is_empty(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _shown(value: object) -> str:
    """A value for a message: short, printable, and without the digits of endless numbers."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() if abs(value) > 10**18:
            return "a number beyond all bounds"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else "a number that is not finite"
        case str() if len(value) > _MAX_SHOWN_CHARS:
            return f"{value[:_MAX_SHOWN_CHARS]!a}…"
        case str():
            return f"{value!a}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"a map of {len(value)}"
        case _:
            return "another kind of value"


def _invalid(field: str, reason: str) -> NoReturn:
    raise Fault(
        FaultCode.MODEL_WEIGHTS_INVALID, f"The adapter is damaged: {field} {reason}.", field=field
    )
