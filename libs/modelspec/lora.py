"""A LoRA adapter as numbers.

Source: Hu et al. 2021, arXiv:2106.09685; DoRA: Liu et al. 2024, arXiv:2402.09353.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lexicon.faults import Fault, FaultCode
from lexicon.names import quoted
from modelspec.shape import ModelShape

ALL_LINEAR = "all-linear"
RANK_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """The settings that determine the size of an adapter."""

    rank: int
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    use_dora: bool = False


def resolve_targets(names: Sequence[str], shape: ModelShape) -> tuple[str, ...]:
    """Module names that get an adapter, `all-linear` spelt out, in the model's order.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    """
    modules = shape.linear_modules()
    for name in names:
        if name not in modules and name != ALL_LINEAR:
            near = difflib.get_close_matches(name, modules, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise Fault(
                FaultCode.CONFIG_TARGET_UNKNOWN,
                f"Target module {quoted(name, characters=60)} is not a module of "
                f"{shape.architecture.name}{hint} It has {', '.join(modules)}",
                target=name[:60],
                modules=", ".join(modules),
            )
    everything = ALL_LINEAR in names
    return tuple(name for name in modules if everything or name in names)


def adapter_parameter_count(lora: LoraSpec, shape: ModelShape) -> int:
    """Parameters of the matrices A and B over all target modules.

    Each target W (out, in) gets A (rank, in) and B (out, rank): rank * (in + out) parameters;
    DoRA adds one magnitude for each output.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    modules = shape.linear_modules()
    return sum(
        module.count
        * (
            lora.rank * (module.in_features + module.out_features)
            + (module.out_features if lora.use_dora else 0)
        )
        for module in (modules[name] for name in resolve_targets(lora.target_modules, shape))
    )


def adapter_bytes(lora: LoraSpec, shape: ModelShape, *, bytes_per_param: int) -> int:
    """Memory of the adapter in bytes.

    Args:
        bytes_per_param: 4 for float32, 2 for bfloat16.
    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    """
    return adapter_parameter_count(lora, shape) * bytes_per_param
