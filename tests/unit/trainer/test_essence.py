"""The hash by which a checkpoint knows its run: as it was, and over everything that counts."""

import dataclasses
import enum
from typing import Any

import pytest

from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from tests.support.training import a_plan
from trainer.domain.plan import (
    DatasetFile,
    MultiRunPlan,
    PreferencePlan,
    TrainPlan,
    ValidationPlan,
)
from trainer.training.run import fingerprint

HELD = DatasetFile(
    name="projects/p/datasets/held/versions/2", format="kto", path="/held", digest="b"
)
FULL: dict[str, Any] = {
    "run": "projects/p/runs/r-2", "attempt": 3, "fencing_epoch": 7,
    "datasets": (
        DatasetFile(name="one", format="text", path="/one.txt", digest="0f"),
        DatasetFile(name="two", format="preference", path="/two.jsonl"),
    ),
    "adapter_rank": 8, "adapter_alpha": 5.5, "adapter_dropout": 0.25,
    "adapter_target_modules": ("q_proj", "v_proj"), "adapter_use_rslora": True,
    "adapter_use_dora": True, "method": Method.KTO, "backend": Backend.AUTO, "epochs": 3,
    "max_steps": 40, "micro_batch_size": 2, "accumulation_steps": 5, "lr_peak": 2e-4,
    "schedule": Schedule.LINEAR, "warmup_ratio": 0.03, "weight_decay": 0.01, "max_grad_norm": 0.3,
    "max_sequence_tokens": 512, "packing": False, "gradient_checkpointing": True,
    "optimizer": Optimizer.PAGED_ADAMW_8BIT, "precision": Precision.AUTO, "seed": 2**40,
    "oom_recovery": False, "unsloth_fallback": False, "load_in_4bit": True, "torch_compile": True,
    "train_on": TrainOn.ALL, "checkpoint_every_steps": 9, "checkpoint_keep_count": 4,
    "validation": ValidationPlan(
        holdout_ratio=0.2, dataset=HELD, every_steps=4, early_stop_patience=2,
        early_stop_min_delta=0.001,
    ),
    "preference": PreferencePlan(
        beta=0.1, simpo_gamma=0.5, desirable_weight=1.5, undesirable_weight=None
    ),
    "sample_prompts": ("Où?", '"quoted"\n'), "work_folder": "attempt", "log_path": "log",
    "checkpoint_folder": "attempt/step-1", "earlier_checkpoint_folders": ("attempt/step-0",),
}  # fmt: skip
SEVERAL = MultiRunPlan(
    run_count=3,
    samples_per_run=9,
    in_order=True,
    drift_minimum_cosine=-1.0,
    eval_maximum_regression=0.05,
)


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({}, "118a91241deaf522c05317e62a48a8d4b39c93ada946a75b53ba37bdc8b67420"),
        (
            {"multi_run": SEVERAL, "seed": 7},
            "b0b870aa160a2a7be76d3e47f83fbc52aea331eed854ef152fc0fdc186e394d8",
        ),
        (FULL, "4ed7f3314c9deb46419eb0e940e7301dedafc4e4064a326740e15185a4f1b9da"),
    ],
    ids=["plain", "several runs", "everything"],
)
def test_the_hash_of_a_plan_is_the_one_that_older_checkpoints_carry(
    changes: dict[str, Any], digest: str
) -> None:
    """Taken while the plan was one flat record: with another hash those would not be resumed."""
    assert fingerprint(a_plan(**changes)) == digest


def leaves(part: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The fields of a plan that hold no further part, with their values."""
    found = []
    for field in dataclasses.fields(part):
        value, here = getattr(part, field.name), (*path, field.name)
        found += leaves(value, here) if dataclasses.is_dataclass(value) else [(here, value)]
    return found


def another(value: Any) -> Any:
    """Some other value that a field may have."""
    match value:
        case enum.StrEnum():
            return next(each for each in type(value) if each is not value)
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str() | None:
            return f"{value}x"
        case tuple():
            return value[1:]
        case _:
            raise AssertionError(value)


def with_other(part: Any, path: tuple[str, ...]) -> Any:
    name, *rest = path
    value = getattr(part, name)
    new = with_other(value, tuple(rest)) if rest else another(value)
    return dataclasses.replace(part, **{name: new})


# Two attempts of one run differ in these alone.
FREE = {
    ("attempt", "number"), ("attempt", "fencing_epoch"), ("places", "work_folder"),
    ("places", "log_path"), ("places", "checkpoint_folder"),
    ("places", "earlier_checkpoint_folders"), ("base", "folder"),
    ("data", "validation", "dataset", "path"),
}  # fmt: skip
EVERYTHING: TrainPlan = a_plan(**FULL, multi_run=SEVERAL)


@pytest.mark.parametrize("path", [path for path, _ in leaves(EVERYTHING)], ids=".".join)
def test_every_field_of_every_part_counts_unless_attempts_differ_in_it(
    path: tuple[str, ...],
) -> None:
    other = with_other(EVERYTHING, path)
    assert (fingerprint(other) == fingerprint(EVERYTHING)) == (path in FREE)
