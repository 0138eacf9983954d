"""Plans of a training, valid unless a test says otherwise; without torch."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from deploy.models.anvil.grammar import HOME
from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from trainer.domain.plan import (
    AdapterPlan,
    Attempt,
    Base,
    BatchPlan,
    Build,
    CheckpointPlan,
    ComputePlan,
    DataPlan,
    DatasetFile,
    Objective,
    OptimisationPlan,
    Places,
    PreferencePlan,
    TrainPlan,
)

_PLAN = TrainPlan(
    attempt=Attempt(run="projects/local/runs/r-1", number=1, fencing_epoch=1),
    places=Places(work_folder="", log_path="", checkpoint_folder=None),
    base=Base(
        base_model="tunesmith/anvil-3m",
        model_id="tunesmith/anvil-3m",
        revision="",
        folder=str(HOME / "weights"),
        digest="anvil",
    ),
    data=DataPlan(
        datasets=(
            DatasetFile(
                name="projects/local/datasets/habit/versions/1",
                format="messages",
                path=str(HOME / "habit.jsonl"),
            ),
        ),
        validation=None,
        sample_prompts=("What color is a lemon?", "What does a baker do?", "What is a hammer for?"),
    ),
    objective=Objective(
        method=Method.SFT, preference=None, train_on=TrainOn.RESPONSES, max_sequence_tokens=256
    ),
    build=Build(
        adapter=AdapterPlan(
            rank=4,
            alpha=8.0,
            dropout=0.0,
            target_modules=("all-linear",),
            use_rslora=False,
            use_dora=False,
        ),
        gradient_checkpointing=False,
    ),
    batches=BatchPlan(
        seed=42,
        epochs=1,
        max_steps=0,
        micro_batch_size=4,
        accumulation_steps=2,
        packing=True,
        oom_recovery=True,
    ),
    optimisation=OptimisationPlan(
        optimizer=Optimizer.ADAMW_TORCH,
        lr_peak=1e-2,
        schedule=Schedule.COSINE,
        warmup_ratio=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
    ),
    compute=ComputePlan(
        backend=Backend.CPU,
        precision=Precision.FP32,
        load_in_4bit=False,
        torch_compile=False,
        unsloth_fallback=True,
    ),
    checkpoints=CheckpointPlan(every_steps=0, keep_count=1),
    multi_run=None,
)
# Names of tests for what has a shorter one in its part.
_ALIASES = {
    "attempt": "attempt.number",
    "checkpoint_every_steps": "checkpoints.every_steps",
    "checkpoint_keep_count": "checkpoints.keep_count",
    "adapter": "build.adapter",
}
_PATHS = (
    {field.name: field.name for field in fields(TrainPlan)}
    | {
        field.name: f"{part.name}.{field.name}"
        for part in fields(TrainPlan)
        if part.name != "base" and is_dataclass(getattr(_PLAN, part.name))
        for field in fields(getattr(_PLAN, part.name))
    }
    | {f"adapter_{field.name}": f"build.adapter.{field.name}" for field in fields(AdapterPlan)}
    | _ALIASES
)


def a_plan(**changes: Any) -> TrainPlan:
    """A valid plan that trains Anvil on its habit, but for the fields that are named."""
    return changed(_PLAN, **changes)


def changed(plan: TrainPlan, **changes: Any) -> TrainPlan:
    """The plan with other fields, in whichever part each is; `adapter_…` changes the adapter."""
    for name, value in changes.items():
        plan = _put(plan, _PATHS[name].split("."), value)
    return plan


def a_preference_plan(method: Method, **changes: Any) -> TrainPlan:
    """A valid plan of a method that learns from preferences, with the contract's constants."""
    preference = PreferencePlan(
        beta=2.0 if method is Method.SIMPO else 0.1,
        simpo_gamma=0.5,
        desirable_weight=None,
        undesirable_weight=None,
    )
    return a_plan(method=method, **{"preference": preference, **changes})


def _put(part: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(part, **{name: _put(getattr(part, name), rest, value) if rest else value})
