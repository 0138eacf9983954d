"""Memory of the device: how much was used, whether it ran out, and giving it back."""

import gc
import resource
import sys

import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.healing import means_out_of_memory

KIBIBYTE = 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, by class or by words (000-13, 002-02)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, Fault):
        return error.code is FaultCode.RUNTIME_GPU_OOM
    return means_out_of_memory(str(error))


def release_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_peak() -> None:
    """Reset `peak_bytes`: what an earlier run of this process took is not this one's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """Largest memory since `forget_peak`: of the device; on a CPU of this process in all."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else peak * KIBIBYTE
