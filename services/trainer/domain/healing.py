"""Recovery from out-of-memory: halve the micro-batch, keep the effective batch."""

import math
from dataclasses import dataclass, replace

from lexicon.faults import Fault, FaultCode

# Ruling A9: three tries at a micro-batch of one, then the run gives up.
TRIES_AT_ONE_MAX = 3
# Texts by which allocators and libraries say that memory ran out, besides torch's own class.
OUT_OF_MEMORY_TEXTS = (
    # CUDA's own allocations, as of pinned memory, say `CUDA error: out of memory`.
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
    "not enough memory",
    "attempting to allocate",
    "unable to allocate",
    "insufficient memory",
    "defaultcpuallocator",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OomRecovery:
    """How an optimizer step is cut into forward passes now.

    The examples of a step never change, so loss and gradient stay what they were.
    """

    effective_batch_size: int
    micro_batch_size: int
    tries_at_one: int = 0

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of a full optimizer step."""
        return math.ceil(self.effective_batch_size / self.micro_batch_size)

    def after_out_of_memory(self, *, allowed: bool) -> "OomRecovery":
        """The next smaller micro-batch after memory ran out.

        Args:
            allowed: False when the user switched healing off; then the first time is the last.
        Raises:
            Fault: RUNTIME_GPU_OOM when there is none.
        """
        if not allowed:
            raise Fault(
                FaultCode.RUNTIME_GPU_OOM,
                f"Out of memory with micro-batch {self.micro_batch_size}; healing is switched off",
                micro_batch_size=self.micro_batch_size,
            )
        if self.micro_batch_size > 1:
            return replace(self, micro_batch_size=self.micro_batch_size // 2)
        if self.tries_at_one + 1 >= TRIES_AT_ONE_MAX:
            raise Fault(
                FaultCode.RUNTIME_GPU_OOM,
                f"Out of memory {TRIES_AT_ONE_MAX} times with a micro-batch of 1",
                tries=TRIES_AT_ONE_MAX,
            )
        return replace(self, tries_at_one=self.tries_at_one + 1)

    def after_success(self) -> "OomRecovery":
        """The same micro-batch with its tries reset: only tries in a row count."""
        return replace(self, tries_at_one=0) if self.tries_at_one else self


def means_out_of_memory(text: str) -> bool:
    """Whether an error text says that memory ran out, in whichever words."""
    lowered = text.lower()
    return any(words in lowered for words in OUT_OF_MEMORY_TEXTS)
