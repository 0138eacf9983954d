"""Plans, rows and a tiny model for tests of the trainer; everything defaults to valid."""

from collections.abc import Sequence
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
    Schedule,
    TrainOn,
    TrainPlan,
)
from trainer.training.attention import SEGMENTED
from trainer.training.batches import IGNORED_LABEL, Example, Row
from trainer.training.loop import Course
from trainer.training.objective import Supervised
from trainer.training.rails import Arithmetic

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


def a_course(
    examples: Sequence[Example], plan: TrainPlan | None = None, *, steps: int, **changes: Any
) -> Course:
    """Supervised training on `examples` in float32."""
    settings: dict[str, Any] = {"objective": Supervised(), "arithmetic": FP32, **changes}
    return Course(plan=plan or a_plan(), examples=examples, steps=steps, **settings)


def some_examples(count: int, *, seed: int = 0, longest: int = 24) -> tuple[Example, ...]:
    """Random examples of one row each."""
    return tuple(Example(rows=(row,)) for row in some_rows(count, seed=seed, longest=longest))


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
