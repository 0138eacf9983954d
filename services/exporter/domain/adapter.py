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
from lexicon.lora_config import AdapterConfig, read_config, refuse, scale_of

_PREFIX: Final = "base_model.model."
_BASE_LAYER: Final = ".base_layer"
_BASE_COPY: Final = f"{_BASE_LAYER}.weight"
_EXPERTS: Final = ".experts"
# Saved names hold no name of an adapter; a magnitude is saved with either name.
_LORA_KEY: Final = re.compile(
    r"(?P<module>.+)\.(?:"
    r"(?P<factor>lora_A|lora_B)\.weight"
    r"|(?P<embedding>lora_embedding_A|lora_embedding_B)"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)
# What PEFT puts between a module's name and a tensor's; the factors are distinguished before.
_UNKNOWN_MARKS: Final = (".lora_", ".base_layer", ".token_adapter.", ".modules_to_save.")
# State of VeLoRA's backward pass.
_TRAINING_ONLY: Final = ".lora_velora_embed"
_MAX_NAME_CHARS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDelta:
    """The change of one matrix W (out, in): scale · B (out, rank) · A (rank, in).

    `a`, `b` and `magnitude` are tensor names of the adapter file; `magnitude` is set for DoRA.
    An embedding's factors are stored transposed. `is_parameter` says that a bare parameter was
    adapted rather than a linear layer. `scale` is NaN for stacked experts, whose factors hold the
    ranks of all side by side: `scale_of` gives it once the base has given their number.
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
    base that came along unchanged, as PEFT adds adapted embeddings. `ties_weights` says that what
    shares its weight with the embedding shares its change as well (`ensure_weight_tying`).
    """

    config: AdapterConfig
    deltas: tuple[MatrixDelta, ...]
    replacements: Mapping[str, str]
    base_copies: Mapping[str, str]
    ties_weights: bool = False


def read_adapter(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Reads `adapter_config.json` together with the names and shapes of the adapter's tensors.

    Raises:
        Fault: EXPORT_ADAPTER_UNSUPPORTED for settings and kinds of tensors that the merge does not
            know, MODEL_WEIGHTS_INVALID for names, shapes or settings that do not fit.
    """
    settings = read_config(config)
    parts: dict[str, dict[str, str]] = {}
    replacements: dict[str, str] = {}
    base_copies: dict[str, str] = {}
    for name in shapes:
        if not name.isprintable() or len(name) > _MAX_NAME_CHARS:
            _invalid("a tensor has a name that no module has")
        bare = name.removeprefix(_PREFIX)
        if match := _LORA_KEY.fullmatch(bare):
            part = match["factor"] or match["embedding"] or match["magnitude"]
            _put(parts.setdefault(match["module"], {}), part, name, changed=match["module"])
        elif bare.endswith(_TRAINING_ONLY):
            continue
        elif bare.endswith(_BASE_COPY):
            target = bare.removesuffix(_BASE_COPY) + ".weight"
            _put(base_copies, target, name, changed=target)
        elif any(mark in bare for mark in _UNKNOWN_MARKS):
            _refuse_tensor(name)
        else:
            _put(replacements, bare, name, changed=bare)
    deltas = tuple(_delta(settings, module, parts, shapes) for module in sorted(parts))
    for target in (*(delta.target for delta in deltas), *base_copies):
        if target in replacements:
            _changed_twice(target)
    return Adapter(
        config=settings,
        deltas=deltas,
        replacements=replacements,
        base_copies=base_copies,
        ties_weights=settings.ties_weights,
    )


def _delta(
    config: AdapterConfig,
    module: str,
    parts: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> MatrixDelta:
    found = parts[module]
    is_embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    if is_embedding and ("lora_A" in found or "lora_B" in found):
        _changed_twice(f"{module}.weight")
    prefix = "lora_embedding" if is_embedding else "lora"
    a, b = found.get(f"{prefix}_A"), found.get(f"{prefix}_B")
    if a is None or b is None:
        _invalid(f"{module} lacks one of its two factors")
    a_shape, b_shape = shapes[a], shapes[b]
    if len(a_shape) != 2 or len(b_shape) != 2 or a_shape[0] != b_shape[1] or 0 in a_shape + b_shape:
        _invalid(f"the factors of {module} do not fit each other")
    is_stack = module.removesuffix(_BASE_LAYER).endswith(_EXPERTS)
    if not is_stack and _BASE_LAYER in module:
        _refuse_inner(module, a, parts)
    is_parameter = config.is_parameter(f"{module}.weight")
    magnitude = found.get("lora_magnitude_vector")
    if config.has_magnitudes and (is_embedding or is_parameter or is_stack):
        refuse("use_dora", True, f"which the merge knows for linear layers, not for {module}")
    if config.has_magnitudes and magnitude is None:
        _invalid(f"{module} lacks its magnitude, which use_dora asks for")
    if magnitude is not None and not config.has_magnitudes:
        _invalid(f"{module} has a magnitude, which use_dora does not ask for")
    if magnitude is not None and shapes[magnitude] != b_shape[:1]:
        _invalid(f"the magnitude of {module} does not fit its factors")
    # PEFT looks a bare parameter up by its own name, a layer by the module's.
    looked_up = f"{module}.weight" if is_parameter else module
    return MatrixDelta(
        module=module,
        a=a,
        b=b,
        rank=a_shape[0],
        scale=math.nan if is_stack else scale_of(config, looked_up, rank=a_shape[0]),
        magnitude=magnitude,
        is_embedding=is_embedding,
        is_parameter=is_parameter,
    )


def _refuse_inner(module: str, name: str, parts: Mapping[str, object]) -> NoReturn:
    """Refuses factors within an adapted layer, which PEFT writes for stacked experts only."""
    outer = module.replace(_BASE_LAYER, "")
    if outer in parts and not outer.endswith(_EXPERTS):
        _changed_twice(f"{outer}.weight")
    _refuse_tensor(name)


def _put(names: dict[str, str], key: str, name: str, *, changed: str) -> None:
    if key in names:
        _changed_twice(changed)
    names[key] = name


def _refuse_tensor(name: str) -> NoReturn:
    raise Fault(
        FaultCode.EXPORT_ADAPTER_UNSUPPORTED,
        f"The adapter is not supported: it has a tensor of a kind that is not known ({name}).",
        tensor=name,
    )


def _changed_twice(name: str) -> NoReturn:
    raise Fault(
        FaultCode.MODEL_WEIGHTS_INVALID,
        f"The adapter is damaged: it changes {name} twice.",
        tensor=name,
    )


def _invalid(reason: str) -> NoReturn:
    raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, f"The adapter is damaged: {reason}.")
