"""What this machine can do, found by doing it once; nodes register it and runs go by it."""

import functools
import logging

import torch

from lexicon.faults import Fault, FaultCode
from modelspec.capability import Capability
from trainer.training import mlx_presence
from trainer.training.compute_precision import cpu_has_bf16_matrix_units

log = logging.getLogger(__name__)

# Rows of a trial are this long: more than one block of bitsandbytes' quantisation.
TRIAL_ELEMENTS = 4096


def found(*, has_unsloth: bool) -> tuple[str, ...]:
    """The capabilities of this process, sorted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held = {Capability.CUDA if device.type == "cuda" else Capability.CPU, Capability.PEFT}
    if has_unsloth:
        held.add(Capability.UNSLOTH)
    if device.type == "cuda":
        held |= {Capability.FP16, Capability.COMPILE}
    if computes_in_bf16(device):
        held.add(Capability.BF16)
    if why_no_bitsandbytes(device) is None:
        held |= {Capability.NF4, Capability.ADAMW_8BIT}
    if mlx_presence.is_available():
        held.add(Capability.MLX)
    return tuple(sorted(held))


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16_matrix_units()


def require_bitsandbytes(what: str, device: torch.device, *, field: str, instead: str) -> None:
    """Make sure that bitsandbytes works on this device.

    Raises:
        Fault: CONFIG_INVALID_SETTING, with what to do instead.
    """
    why = why_no_bitsandbytes(device)
    if why is not None:
        raise Fault(
            FaultCode.CONFIG_INVALID_SETTING,
            f"This node does not do {what}: {why}. {instead}",
            field=field,
        )


@functools.cache
def why_no_bitsandbytes(device: torch.device) -> str | None:
    """Why bitsandbytes does not work here; None when it does, by a trial of both that it is for."""
    try:
        import bitsandbytes
        from bitsandbytes import functional

        weights = torch.randn(TRIAL_ELEMENTS, device=device)
        packed, state = functional.quantize_4bit(weights, quant_type="nf4")
        functional.dequantize_4bit(packed, state)
        parameter = torch.nn.Parameter(weights.clone())
        parameter.grad = torch.ones_like(parameter)
        kinds = vars(bitsandbytes.optim)
        kinds["AdamW8bit"]([parameter]).step()
    except Exception as error:  # noqa: BLE001 - what a binary for another machine raises
        log.warning("bitsandbytes does not work on %s: %s", device.type, error)
        return f"bitsandbytes does not work on its {device.type} ({type(error).__name__})"
    return None
