"""The backend of a run on CUDA or on a processor: transformers + PEFT, or Unsloth."""

import os
from dataclasses import dataclass

import torch

from trainer.domain.plan import TrainPlan
from trainer.training.compute_precision import ComputePrecision, compute_precision_for, threads_for
from trainer.training.dataset import TrainingData, Warn, require_known_tokens
from trainer.training.isolation import require_working
from trainer.training.libraries import TorchLibraries, TorchLibrary, loading
from trainer.training.memory import forget_peak
from trainer.training.model_cache import ModelCache
from trainer.training.torch_model import TorchModel


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackend:
    """See `run.Backend`.

    Attributes:
        library: the one of `libraries` that holds the model.
    """

    library: TorchLibrary
    libraries: TorchLibraries
    compute_precision: ComputePrecision
    packs_rows: bool = True

    @classmethod
    def choose(
        cls,
        plan: TrainPlan,
        device: torch.device,
        libraries: TorchLibraries,
        cache: ModelCache,
        *,
        warn: Warn,
    ) -> "TorchBackend":
        """The library, the numbers and the processor's threads of a run on `device`.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED, CONFIG_INVALID_SETTING, RUNTIME_UNSLOTH_FAILED.
        """
        compute, width = plan.compute, cache.width_of(plan.base)
        compute_precision = compute_precision_for(
            compute.precision, device, width=width, four_bit=compute.load_in_4bit
        )
        torch.set_num_threads(threads_for(width, available=_cores()))
        library = libraries.choose(compute, device, warn=warn)
        return cls(library=library, libraries=libraries, compute_precision=compute_precision)

    def adapt(self, plan: TrainPlan, data: TrainingData, cache: ModelCache) -> TorchModel:
        """See `run.Backend`."""
        forget_peak()
        with loading(self.library, self.libraries):
            module = cache.adapted_for(
                plan.base, plan.build, self.library, self.compute_precision, seed=plan.batches.seed
            )
            if self.library is self.libraries.unsloth:
                require_working(module, self.compute_precision, packing=plan.batches.packing)
        require_known_tokens(data, module.get_input_embeddings().weight.shape[0])
        return TorchModel(
            module=module, compute_precision=self.compute_precision, library=self.library
        )


def _cores() -> int:
    """Cores this process may use, or as many as the operator grants it."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    if granted.isdecimal() and int(granted):
        return int(granted)
    # macOS does not report which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
