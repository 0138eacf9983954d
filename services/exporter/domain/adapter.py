"""A PEFT adapter as the merge sees it: which matrices change, by what, and with which factor.

Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rank-stabilised
scaling); the file format is that of `PeftModel.save_pretrained`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from lexicon.faults import Fault, FaultCode

_PREFIX: Final = "base_model.model."
_BASE_COPY: Final = ".base_layer.weight"
_LORA_KEY: Final = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B)"
    r"(?:\.weight)?$"
)
# Patterns of module names are dotted names with alternatives and a wildcard or two, without groups:
# such a pattern cannot take long on a name, whoever wrote it.
_PLAIN_PATTERN: Final = re.compile(r"[\w.|^$\\*]*")
_MAX_WILDCARDS: Final = 3

MAX_RANK: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDelta:
    """The change of one matrix W (out, in): scale · B (out, rank) · A (rank, in).

    `a`, `b` and `magnitude` are tensor names of the adapter file; `magnitude` is set for DoRA.
    An embedding's factors are stored transposed. `is_parameter` says that a bare parameter was
    adapted rather than a linear layer.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    magnitude: str | None = None
    is_embedding: bool = False
    is_parameter: bool = False

    @property
    def target(self) -> str:
        """The tensor of the checkpoint."""
        return f"{self.module}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """All changes of an adapter, by the names of the checkpoint.

    `replacements` are tensors trained whole (`modules_to_save`); `base_copies` are tensors of the
    base that came along unchanged, as PEFT adds adapted embeddings.
    """

    config: Mapping[str, Any]
    deltas: tuple[MatrixDelta, ...]
    replacements: Mapping[str, str]
    base_copies: Mapping[str, str]

    @property
    def ties_weights(self) -> bool:
        """Whether embedding and head share their change (`ensure_weight_tying`)."""
        return self.config.get("ensure_weight_tying") is True


def read_adapter(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Reads `adapter_config.json` together with the names and shapes of the adapter's tensors.

    Raises:
        Fault: EXPORT_TENSOR_UNMAPPED for tensors of another kind, MODEL_WEIGHTS_INVALID for shapes
            or settings that do not fit.
    """
    if config.get("peft_type") != "LORA" or config.get("fan_in_fan_out") or config.get("lora_bias"):
        _unmapped("the adapter is not a plain LoRA adapter", name=str(config.get("peft_type"))[:40])
    parts: dict[str, dict[str, str]] = {}
    replacements: dict[str, str] = {}
    base_copies: dict[str, str] = {}
    for name in shapes:
        bare = name.removeprefix(_PREFIX)
        match = _LORA_KEY.fullmatch(bare)
        if match:
            parts.setdefault(match["module"], {})[match["part"]] = name
        elif ".lora_" in bare:
            _unmapped("an adapter tensor is of an unknown kind", name=name)
        elif bare.endswith(_BASE_COPY):
            base_copies[bare.removesuffix(_BASE_COPY) + ".weight"] = name
        else:
            replacements[bare.replace(".modules_to_save.default.", ".")] = name
    return Adapter(
        config=config,
        deltas=tuple(
            _delta(config, module, found, shapes) for module, found in sorted(parts.items())
        ),
        replacements=replacements,
        base_copies=base_copies,
    )


def scale_of(config: Mapping[str, Any], module: str, *, rank: int) -> float:
    """The factor of a module's delta: alpha / rank, or alpha / sqrt(rank) when rank-stabilised.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    alpha = config.get("lora_alpha")
    for pattern, value in dict(config.get("alpha_pattern") or {}).items():
        if not _PLAIN_PATTERN.fullmatch(pattern) or pattern.count("*") > _MAX_WILDCARDS:
            _invalid("alpha_pattern is no list of module names")
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            alpha = value
            break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        _invalid("lora_alpha is not a number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _delta(
    config: Mapping[str, Any],
    module: str,
    found: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> MatrixDelta:
    is_embedding = "lora_embedding_A" in found
    prefix = "lora_embedding" if is_embedding else "lora"
    a, b = found.get(f"{prefix}_A"), found.get(f"{prefix}_B")
    if a is None or b is None:
        _invalid(f"{module} lacks one of its two factors")
    a_shape, b_shape = shapes[a], shapes[b]
    if (
        len(a_shape) != 2
        or len(b_shape) != 2
        or a_shape[0] != b_shape[1]
        or not 1 <= a_shape[0] <= MAX_RANK
    ):
        _invalid(f"the factors of {module} do not fit each other")
    return MatrixDelta(
        module=module,
        a=a,
        b=b,
        rank=a_shape[0],
        scale=scale_of(config, module, rank=a_shape[0]),
        magnitude=found.get("lora_magnitude_vector"),
        is_embedding=is_embedding,
        is_parameter=any(
            f"{module}.weight".endswith(f".{name}")
            for name in config.get("target_parameters") or ()
            if isinstance(name, str)
        ),
    )


def _unmapped(reason: str, *, name: str) -> NoReturn:
    raise Fault(
        FaultCode.EXPORT_TENSOR_UNMAPPED,
        f"The adapter cannot be merged: {reason} ({name}).",
        tensor=name,
    )


def _invalid(reason: str) -> NoReturn:
    raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, f"The adapter is damaged: {reason}.")
