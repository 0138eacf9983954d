"""The backend of a run on MLX."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from trainer.domain.plan import TrainPlan
from trainer.training.dataset import TrainingData, require_known_tokens
from trainer.training.mlx_backend.base import load_base
from trainer.training.mlx_backend.faithful import reference_logprobs, require_faithful
from trainer.training.mlx_backend.model import MlxModel, attach
from trainer.training.model_cache import ModelCache
from trainer.training.peft_library import vocabulary_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxBackend:
    """See `run.Backend`."""

    packs_rows: bool = False

    def adapt(self, plan: TrainPlan, data: TrainingData, cache: ModelCache) -> MlxModel:
        """See `run.Backend`; a base of torch gives way to it, and it stays for no other run."""
        cache.drop_base()
        mx.reset_peak_memory()
        # Before anything is computed: MLX reads whatever lies behind the last embedding.
        require_known_tokens(data, vocabulary_of(plan.base))
        base = _faithful_base(plan, data)
        return attach(base, plan.base, plan.build.adapter, seed=plan.batches.seed)


def _faithful_base(plan: TrainPlan, data: TrainingData) -> Any:
    """The base model, which says what transformers says after the first tokens of the data."""
    base, precision = plan.base, plan.compute.precision
    longest = max((row.sequences[0].ids for row in data.rows), key=len)
    # One after the other: two models at once would need twice the memory.
    expected_TV = reference_logprobs(base, longest, precision)
    loaded = load_base(base, precision)
    require_faithful(loaded, base, longest, expected_TV)
    return loaded
