"""In which numbers a run computes: what was asked for, and what the hardware is good at."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision

# Below this width a model's matrices are too small for bf16 units and for more than one thread:
# converting and waiting for each other costs more than it wins (measured at 256: two threads on two
# busy cores are up to twice as slow as one).
WIDE_MODEL = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePrecision:
    """In which numbers the model is held and computed.

    `four_bit` says that the base's linear layers are held as nf4; `weights` is then what they are
    computed in, and what the rest of the base is held in.
    """

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None
    four_bit: bool = False

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are computed in fp16, whose range small ones fall out of."""
        return self.autocast is torch.float16

    def context(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def compute_precision_for(
    precision: Precision, device: torch.device, *, width: int, four_bit: bool = False
) -> ComputePrecision:
    """The numbers to compute in: what was asked for, or what the hardware is good at.

    bf16 on a CPU without matrix units for it is several times slower than fp32; a GPU without bf16
    computes in fp16.
    """
    good_at_bf16 = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else cpu_has_bf16_matrix_units() and width >= WIDE_MODEL
    )
    if precision is Precision.AUTO:
        if good_at_bf16:
            precision = Precision.BF16
        else:
            precision = Precision.FP16 if device.type == "cuda" else Precision.FP32
    match precision:
        case Precision.BF16:
            weights = torch.bfloat16
        case Precision.FP16 if device.type == "cuda":
            weights = torch.float16
        case Precision.FP16:
            raise Fault(
                FaultCode.CONFIG_INVALID_SETTING, "fp16 needs a GPU; use auto, bf16 or fp32"
            )
        case _:
            weights = torch.float32
    autocast = None if weights is torch.float32 else weights
    return ComputePrecision(device=device, weights=weights, autocast=autocast, four_bit=four_bit)


def threads_for(width: int, *, available: int) -> int:
    """CPU threads that a model of this width can keep busy."""
    return available if width >= WIDE_MODEL else 1


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread within, for hundreds of small tensors one after another.

    Several would wait for each other at each of them: on two busy cores that took eight times as
    long as the work (measured over the adapter of a model of half a billion parameters).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_has_bf16_matrix_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())
