"""Adapters over the experts of a mixture: one pair of factors for all of them, taken apart.

In memory the experts of a layer are two stacked parameters: gate and up projections above each
other, and the down projections. PEFT adapts each by factors that hold every expert's rank side by
side. The checkpoint and the GGUF know experts one by one.
Source: `lora.ParamWrapper` of peft: delta[e] = B.reshape(out, rank, experts)[:, :, e] @
A.reshape(experts, rank, in)[e].
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lexicon.faults import Fault, FaultCode

_ROLES: Final = {
    "w1": "gate",
    "gate_proj": "gate",
    "w3": "up",
    "up_proj": "up",
    "w2": "down",
    "down_proj": "down",
}
# What a mixture is called in memory and in checkpoints of Mixtral.
_ALIASES: Final = ((".mlp.", ".block_sparse_moe."),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPart:
    """One expert's matrix and the rows of the stacked parameter that are its own."""

    target: str
    expert: int
    first_row: int
    end_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStack:
    """A stacked parameter: its name in memory and its matrices."""

    parameter: str
    expert_count: int
    parts: tuple[ExpertPart, ...]


def checkpoint_name(name: str, known: Mapping[str, object]) -> str:
    """The name of a tensor as the checkpoint has it, when memory calls it otherwise."""
    for inside, outside in _ALIASES:
        if name not in known and name.replace(inside, outside) in known:
            return name.replace(inside, outside)
    return name


def expert_stack(
    module: str, *, rows: int, columns: int, matrices: Mapping[str, tuple[int, int]]
) -> ExpertStack | None:
    """Returns the stack that a module's factors change, or None when it is no stack of experts.

    Args:
        module: name in memory, ending in `.experts` or, for the inner of two,
            `.experts.base_layer`. rows, columns: shape of one expert's slice of the parameter.
        matrices: (rows, columns) of every matrix of the checkpoint by name.
    Raises:
        Fault: EXPORT_WRONG_BASE when no stacked parameter of the base has this shape.
    """
    stem = module.removesuffix(".base_layer")
    if not stem.endswith(".experts"):
        return None
    found = _experts(stem, matrices)
    gates, ups, downs = (found.get(role, {}) for role in ("gate", "up", "down"))
    if not gates or not gates.keys() == ups.keys() == downs.keys():
        return None
    half, inner = matrices[gates[0]]
    if (rows, columns) == (2 * half, inner):
        parts = [_part(gates, expert, 0, half) for expert in sorted(gates)]
        parts += [_part(ups, expert, half, 2 * half) for expert in sorted(ups)]
        return ExpertStack(
            parameter=f"{stem}.gate_up_proj", expert_count=len(gates), parts=tuple(parts)
        )
    if (rows, columns) == matrices[downs[0]]:
        parts = [_part(downs, expert, 0, rows) for expert in sorted(downs)]
        return ExpertStack(
            parameter=f"{stem}.down_proj", expert_count=len(downs), parts=tuple(parts)
        )
    raise Fault(
        FaultCode.EXPORT_WRONG_BASE,
        f"The adapter changes {module} in the shape [{rows}, {columns}], which the base has not.",
        tensor=module,
    )


def _experts(stem: str, matrices: Mapping[str, object]) -> dict[str, dict[int, str]]:
    """Names of the experts' matrices by role and number."""
    found: dict[str, dict[int, str]] = {}
    for prefix in (stem, *(stem.replace(inside, outside) for inside, outside in _ALIASES)):
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(\w+)\.weight")
        for name in matrices:
            match = pattern.fullmatch(name)
            if match and match[2] in _ROLES:
                found.setdefault(_ROLES[match[2]], {})[int(match[1])] = name
    return found


def _part(names: Mapping[int, str], expert: int, first_row: int, end_row: int) -> ExpertPart:
    return ExpertPart(target=names[expert], expert=expert, first_row=first_row, end_row=end_row)
