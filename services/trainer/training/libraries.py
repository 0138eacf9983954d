"""Which library holds a run's model in torch, and what such a library is.

Unsloth changes transformers and PEFT while it is imported, so it has to come before them: this
module is read first of all and imports none of the three by itself.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain import mlx
from trainer.domain.device import (
    Device,
    UnslothPolicy,
    device_of,
    fallback_text,
    short_cause,
    tries_unsloth,
)
from trainer.domain.plan import Base, Build, ComputePlan, TrainPlan
from trainer.pipe import Terms
from trainer.training.compute_precision import ComputePrecision

log = logging.getLogger(__name__)

Warn = Callable[[FaultCode, str], None]


class TorchLibrary(Protocol):
    """Who holds a base model and its adapter in torch. A module is one; see `torch_model`."""

    @property
    def NAME(self) -> str:
        """What it is called, in logs and among a node's capabilities."""
        ...

    @property
    def HAS_FUSED_KERNELS(self) -> bool:
        """Whether it brings kernels of its own for what would be compiled."""
        ...

    def load_base(self, base: Base, compute_precision: ComputePrecision) -> Any:
        """The frozen base model from its local folder; no code of the folder is run.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID, RUNTIME_GPU_OOM.
        """
        ...

    def attach(self, model: Any, build: Build, *, seed: int) -> Any:
        """The base with a fresh adapter, a `PeftModel`; only the adapter requires a gradient.

        Raises:
            Fault: CONFIG_TARGET_UNKNOWN when no module has the wanted name.
        """
        ...

    def detach(self, adapted: Any) -> Any | None:
        """The base as it was before `attach`; None when it cannot be given back."""
        ...

    def generating(self, adapted: Any) -> AbstractContextManager[None]:
        """The context for generation; what training needs is back after it, whatever happens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchLibraries:
    """The libraries of this process.

    Attributes:
        unsloth: None when it is not wanted here, or when it cannot be used.
        failure: why it cannot be used; empty when it can, or is not wanted.
        is_apple: whether this is a host on which auto means MLX.
    """

    terms: Terms
    peft: TorchLibrary
    unsloth: TorchLibrary | None
    failure: str
    is_apple: bool = False

    def resolve(self, plan: TrainPlan) -> Device:
        """What a run computes on.

        Raises:
            Fault: DEP_GPU_NOT_AVAILABLE.
        """
        return device_of(
            plan.compute.backend,
            has_cuda=torch.cuda.is_available(),
            tier=self.terms.tier,
            prefers_mlx=self.is_apple and not mlx.unsupported(plan),
        )

    def choose(self, compute: ComputePlan, device: torch.device, *, warn: Warn) -> TorchLibrary:
        """The library of a run; the user is warned when it is the fallback.

        Raises:
            Fault: RUNTIME_UNSLOTH_FAILED when there is none but the fallback, which the user
                switched off.
        """
        if device.type == Device.CPU and self.terms.unsloth is not UnslothPolicy.ALWAYS:
            return self.peft
        if self.unsloth is not None:
            return self.unsloth
        if not self.failure:
            return self.peft
        if not compute.unsloth_fallback:
            raise unsloth_failed(self.failure)
        warn(FaultCode.RUNTIME_UNSLOTH_FAILED, fallback_text(self.failure))
        return self.peft


def find_libraries(
    terms: Terms,
    *,
    has_cuda: bool,
    is_apple: bool = False,
    import_unsloth: Callable[[], TorchLibrary],
    import_peft: Callable[[], TorchLibrary],
    restart: Callable[[Terms], None],
) -> TorchLibraries:
    """The libraries of this process, imported in the order that they need.

    Args:
        begin_anew: replaces this process by one under other terms: an import that fails halfway has
            changed the libraries around it already.
    """
    unsloth = None
    if not terms.unsloth_failure and tries_unsloth(terms.unsloth, has_cuda=has_cuda):
        try:
            unsloth = import_unsloth()
        except Exception as error:
            log.exception("Unsloth cannot be imported")
            terms = msgspec.structs.replace(terms, unsloth_failure=short_cause(error))
            restart(terms)
    return TorchLibraries(
        terms=terms,
        peft=import_peft(),
        unsloth=unsloth,
        failure=terms.unsloth_failure,
        is_apple=is_apple,
    )


def import_unsloth() -> TorchLibrary:
    """Unsloth, imported by this."""
    # Read while it is imported: no count of downloads, and compiled code in a folder of this user
    # alone, as it is run again by the next process.
    compiled = Path.home() / ".cache" / "tunesmith" / "unsloth"
    compiled.mkdir(parents=True, exist_ok=True)
    compiled.chmod(0o700)
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(compiled)
    from trainer.training import unsloth_library

    return unsloth_library


def import_peft() -> TorchLibrary:
    """transformers + PEFT, imported by this."""
    from trainer.training import peft_library

    return peft_library


@contextmanager
def loading(library: TorchLibrary, libraries: TorchLibraries) -> Iterator[None]:
    """Names Unsloth as the cause of whatever goes wrong while it loads.

    Raises:
        Fault: RUNTIME_UNSLOTH_FAILED.
    """
    try:
        yield
    except Exception as error:
        if library is not libraries.unsloth:
            raise
        log.exception("Unsloth failed")
        raise unsloth_failed(short_cause(error)) from error


def unsloth_failed(cause: str) -> Fault:
    """The fault of a run that Unsloth cannot load, with its short cause."""
    return Fault(FaultCode.RUNTIME_UNSLOTH_FAILED, f"Unsloth could not load: {cause}", cause=cause)
