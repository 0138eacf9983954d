"""What a backend is: it brings the base model of a run into memory with a fresh adapter on it.

There are three: transformers + PEFT and Unsloth, which share `torch_backend`, and MLX.
"""

from typing import Protocol

from trainer.domain.plan import TrainPlan
from trainer.training.adapted_model import AdaptedModel
from trainer.training.dataset import TrainingData
from trainer.training.model_cache import ModelCache


class Backend(Protocol):
    """The backend of one run, in the numbers that it computes in."""

    @property
    def packs_rows(self) -> bool:
        """Whether examples can share a row; otherwise rows are padded, and the loss is the same."""
        ...

    def adapt(self, plan: TrainPlan, data: TrainingData, cache: ModelCache) -> AdaptedModel:
        """The base with a fresh adapter, out of what `cache` holds as far as that goes.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID, RUNTIME_GPU_OOM,
                CONFIG_TARGET_UNKNOWN, RUNTIME_UNSLOTH_FAILED, and what `require_known_tokens`
                raises.
        """
        ...
