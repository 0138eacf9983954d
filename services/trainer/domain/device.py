"""The device and library of a run: what was asked for, against what the node has."""

import enum
from typing import assert_never

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend

# The tier whose nodes train on their processor.
CPU_TIER = "cpu"
# A cause is part of a sentence; the whole of it is in the run's log.
CAUSE_CHARACTERS_MAX = 160


class Device(enum.StrEnum):
    """What a run computes on."""

    CUDA = "cuda"
    CPU = "cpu"
    MLX = "mlx"


def device_of(backend: Backend, *, has_cuda: bool, tier: str, prefers_mlx: bool = False) -> Device:
    """The device of a run.

    A run that was sold a GPU never trains on the processor because a driver broke: that would be a
    hundred times slower at the price of the GPU.

    | asked for | prefers MLX | CUDA there | CUDA missing, tier cpu | CUDA missing, any other tier |
    |---|---|---|---|---|
    | auto | MLX | CUDA | CPU | DEP_GPU_NOT_AVAILABLE |
    | cuda | as without | CUDA | DEP_GPU_NOT_AVAILABLE | DEP_GPU_NOT_AVAILABLE |
    | cpu | as without | CPU | CPU | CPU |
    | mlx | MLX | MLX | MLX | MLX |

    Whether MLX is installed is asked when the run begins to train, not here.

    Args:
        prefers_mlx: an Apple host, and a plan that MLX does; auto never means MLX on other hosts.
    Raises:
        Fault: DEP_GPU_NOT_AVAILABLE.
    """
    match backend:
        case Backend.CPU:
            return Device.CPU
        case Backend.MLX:
            return Device.MLX
        case Backend.AUTO if prefers_mlx:
            return Device.MLX
        case Backend.AUTO | Backend.CUDA if has_cuda:
            return Device.CUDA
        case Backend.AUTO if tier == CPU_TIER:
            return Device.CPU
        case _:
            raise Fault(
                FaultCode.DEP_GPU_NOT_AVAILABLE,
                f"The backend {backend} needs CUDA, and this node of tier {tier} has none",
                backend=backend.value,
                tier=tier,
            )


class UnslothPolicy(enum.StrEnum):
    """When a node tries Unsloth before transformers + PEFT, as its operator wants it."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def tries_unsloth(policy: UnslothPolicy, *, has_cuda: bool) -> bool:
    """Whether a child imports Unsloth: where there is CUDA, if the operator says nothing else."""
    match policy:
        case UnslothPolicy.ALWAYS:
            return True
        case UnslothPolicy.NEVER:
            return False
        case UnslothPolicy.AUTO:
            return has_cuda
        case _:
            assert_never(policy)


def fallback_text(cause: str) -> str:
    """The words by which users know that a run trains without Unsloth (002-24)."""
    return (
        f"Unsloth load failed ({cause}); falling back to transformers + PEFT. "
        "Set Trainer(unsloth_fallback=False) to disable."
    )


def short_cause(error: BaseException) -> str:
    """Class and first line of an error, in at most `CAUSE_CHARACTERS_MAX` characters."""
    first = next(iter(str(error).splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= CAUSE_CHARACTERS_MAX else text[: CAUSE_CHARACTERS_MAX - 1] + "…"
