"""Plans, rows and a tiny model for tests of the trainer; everything defaults to valid."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deploy.models.anvil.grammar import HOME
from trainer.domain.plan import (
    AdapterPlan,
    Backend,
    Base,
    DatasetFile,
    Method,
    Optimizer,
    Precision,
    PreferencePlan,
    Schedule,
    TrainOn,
    TrainPlan,
)
from trainer.training.arithmetic import Arithmetic
from trainer.training.attention import SEGMENTED
from trainer.training.batches import IGNORED_LABEL, Judged, Pair, Row

# Threads only wait for each other over matrices as small as these.
torch.set_num_threads(1)

FP32 = Arithmetic(device=torch.device("cpu"), weights=torch.float32, autocast=None)
TINY_VOCABULARY = 64

_PLAN = TrainPlan(
    run="projects/local/runs/r-1",
    attempt=1,
    fencing_epoch=1,
    base=Base(
        base_model="tunesmith/anvil-3m",
        model_id="tunesmith/anvil-3m",
        revision="",
        folder=str(HOME / "weights"),
        digest="anvil",
    ),
    datasets=(
        DatasetFile(
            name="projects/local/datasets/habit/versions/1",
            format="messages",
            path=str(HOME / "habit.jsonl"),
        ),
    ),
    adapter=AdapterPlan(
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=("all-linear",),
        use_rslora=False,
        use_dora=False,
    ),
    method=Method.SFT,
    backend=Backend.CPU,
    epochs=1,
    max_steps=0,
    micro_batch_size=4,
    accumulation_steps=2,
    lr_peak=1e-2,
    schedule=Schedule.COSINE,
    warmup_ratio=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_sequence_tokens=256,
    packing=True,
    gradient_checkpointing=False,
    optimizer=Optimizer.ADAMW_TORCH,
    precision=Precision.FP32,
    seed=42,
    oom_recovery=True,
    unsloth_fallback=True,
    load_in_4bit=False,
    torch_compile=False,
    train_on=TrainOn.RESPONSES,
    checkpoint_every_steps=0,
    checkpoint_keep_count=1,
    validation=None,
    preference=None,
    multi_run=None,
    sample_prompts=("What color is a lemon?", "What does a baker do?", "What is a hammer for?"),
    work_folder="",
    log_path="",
    checkpoint_folder=None,
)


def a_plan(**changes: Any) -> TrainPlan:
    """A valid plan that trains Anvil on its habit; `adapter_…` changes the adapter."""
    inside = {key.removeprefix("adapter_"): changes.pop(key) for key in list(changes)
              if key.startswith("adapter_")}  # fmt: skip
    return replace(_PLAN, adapter=replace(_PLAN.adapter, **inside), **changes)


def a_preference_plan(method: Method, **changes: Any) -> TrainPlan:
    """A valid plan of a method that learns from preferences, with the contract's constants."""
    preference = PreferencePlan(
        beta=2.0 if method is Method.SIMPO else 0.1,
        simpo_gamma=0.5,
        desirable_weight=None,
        undesirable_weight=None,
    )
    return a_plan(method=method, **{"preference": preference, **changes})


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


def some_verdicts(count: int, *, seed: int = 1) -> tuple[Judged, ...]:
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
        examples.append(Judged(completion=completion, desirable=desirable, weight=weight))
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
