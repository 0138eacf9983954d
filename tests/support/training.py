"""Plans, rows and a tiny model for tests of the trainer; everything defaults to valid."""

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.plans import a_plan, a_preference_plan, changed
from trainer.domain.plan import TrainPlan
from trainer.domain.scaling import LossScale
from trainer.training import loop, peft_library
from trainer.training.attention import SEGMENTED
from trainer.training.batches import IGNORED_LABEL, KtoExample, Pair, Row
from trainer.training.compute_precision import ComputePrecision
from trainer.training.dataset import DatasetCache, TrainingData, Warn
from trainer.training.preference import objective_of
from trainer.training.torch_model import TorchModel

# Plans are asked for together with what is trained by them.
__all__ = ["a_plan", "a_preference_plan", "changed"]

# Threads only wait for each other over matrices as small as these.
torch.set_num_threads(1)

FP32 = ComputePrecision(device=torch.device("cpu"), weights=torch.float32, autocast=None)
TINY_VOCABULARY = 64


def attached(model: Any, plan: TrainPlan) -> Any:
    """The model with the plan's adapter, as transformers and PEFT make it."""
    return peft_library.attach(model, plan.build, seed=plan.batches.seed)


def a_torch_model(module: Any, compute_precision: ComputePrecision = FP32) -> TorchModel:
    """An adapted model of PEFT as the training loop sees it."""
    return TorchModel(module=module, compute_precision=compute_precision, library=peft_library)


def a_state(
    module: Any,
    plan: TrainPlan,
    *,
    compute_precision: ComputePrecision = FP32,
    loss_scale: LossScale | None = None,
) -> loop.TrainState:
    """The state of an adapted model of PEFT before the plan's first step."""
    objective, model = objective_of(plan.objective), a_torch_model(module, compute_precision)
    return loop.begin(model, plan.batches, plan.optimisation, objective, loss_scale=loss_scale)


def torch_model(state: loop.TrainState) -> TorchModel:
    """What a state of `a_state` trains."""
    assert isinstance(state.model, TorchModel)
    return state.model


def some_data(
    plan: TrainPlan, *, warn: Warn, dataset_cache: DatasetCache | None = None
) -> TrainingData:
    """The plan's data, read and encoded."""
    return TrainingData.prepare(
        plan.base, plan.data, plan.objective, warn=warn, dataset_cache=dataset_cache
    )


def some_rows(count: int, *, seed: int = 0, longest: int = 24) -> tuple[Row, ...]:
    """Random rows of different lengths; the first third of each is prompt and not trained on."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(0, TINY_VOCABULARY, rng.integers(4, longest)).astype(np.int32)
        labels = ids.copy()
        labels[: len(ids) // 3] = IGNORED_LABEL
        rows.append(Row(ids=ids, labels=labels))
    return tuple(rows)


def some_pairs(count: int, *, seed: int = 0) -> tuple[Pair, ...]:
    """Random prompts, each with two random continuations of different lengths."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        prompt = _some_ids(rng, 2, 9)
        chosen, rejected = (_continued(prompt, _some_ids(rng, 1, 12)) for _ in range(2))
        pairs.append(Pair(chosen=chosen, rejected=rejected))
    return tuple(pairs)


def some_verdicts(count: int, *, seed: int = 1) -> tuple[KtoExample, ...]:
    """Random prompts with a random continuation; every fourth is not desirable and weighs twice.

    The desirable ones share a quarter of the vocabulary: what is learnt of one reaches the others,
    as it does in a language.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        desirable = index % 4 != 0
        prompt, words = _some_ids(rng, 2, 9), _some_ids(rng, 2, 12)
        completion = _continued(prompt, words % (TINY_VOCABULARY // 4) if desirable else words)
        weight = 1.0 if desirable else 2.0
        examples.append(KtoExample(completion=completion, desirable=desirable, weight=weight))
    return tuple(examples)


def a_tiny_model(seed: int = 0, *, attention: str = SEGMENTED) -> Any:
    """A Llama of a few thousand random weights, frozen."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    return model.requires_grad_(False)


def _some_ids(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    return rng.integers(0, TINY_VOCABULARY, rng.integers(shortest, longest)).astype(np.int32)


def _continued(prompt: np.ndarray, words: np.ndarray) -> Row:
    labels = np.concatenate([np.full_like(prompt, IGNORED_LABEL), words])
    return Row(ids=np.concatenate([prompt, words]), labels=labels)
