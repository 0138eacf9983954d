"""Plans of a training, valid unless a test says otherwise; without torch."""

from dataclasses import replace
from typing import Any

from deploy.models.anvil.grammar import HOME
from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from trainer.domain.plan import AdapterPlan, Base, DatasetFile, PreferencePlan, TrainPlan

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
