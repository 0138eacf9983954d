"""A lease becomes a plan; every enum of the contract is known; what cannot be done is refused."""

from pathlib import Path

import pytest

from lexicon.faults import Fault, FaultCode, Stage
from modelspec.recipe import Method, TrainOn
from trainer import wire
from trainer.domain.continual import MergeOutcome, MergeRecord
from trainer.domain.plan import Base, MultiRunPlan, TrainPlan
from trainer.pipe import StepTaken
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2

BASE = Base(base_model="b", model_id="b", revision="", folder="/b", digest="d")


def a_lease(**training: object) -> work_pb2.Lease:
    config = spec_pb2.TrainingConfig(
        epochs=2, micro_batch_size=4, accumulation_steps=2, learning_rate=1e-3, seed=7,
        max_sequence_tokens=128,
    )  # fmt: skip
    for name, value in training.items():
        setattr(config, name, value)
    return work_pb2.Lease(
        run="projects/p/runs/r",
        attempt=2,
        fencing_epoch=5,
        train=work_pb2.TrainTask(
            training=config,
            lora=spec_pb2.LoraConfig(rank=8, alpha=16),
            datasets=[work_pb2.DatasetInput(name="d", format=dataset_pb2.FORMAT_MESSAGES)],
        ),
    )


def plan_of(lease: work_pb2.Lease) -> TrainPlan:
    return wire.plan_from_lease(
        lease,
        base=BASE,
        dataset_paths=[Path("/d.jsonl")],
        validation_path=None,
        checkpoint_folders=(),
        work_folder=Path("/w"),
        log_path=Path("/l"),
    )


def test_plan_has_what_the_lease_says() -> None:
    plan = wire.plan_from_lease(
        a_lease(), base=BASE, dataset_paths=[Path("/d.jsonl")], validation_path=None,
        checkpoint_folders=(), work_folder=Path("/w"), log_path=Path("/l"),
    )  # fmt: skip
    assert (plan.attempt.run, plan.attempt.number, plan.attempt.fencing_epoch) == (
        "projects/p/runs/r",
        2,
        5,
    )
    assert (plan.batches.epochs, plan.batches.effective_batch_size, plan.batches.seed) == (2, 8, 7)
    assert plan.objective.method is Method.SFT
    assert plan.objective.train_on is TrainOn.RESPONSES
    assert plan.build.adapter.target_modules == ("all-linear",)
    assert plan.data.datasets[0].format == "messages"


@pytest.mark.parametrize(
    ("enum", "table"),
    [
        (spec_pb2.Method, wire._METHODS),
        (spec_pb2.Backend, wire._BACKENDS),
        (spec_pb2.Schedule, wire._SCHEDULES),
        (spec_pb2.Optimizer, wire._OPTIMIZERS),
        (spec_pb2.Precision, wire._PRECISIONS),
        (spec_pb2.TrainOn, wire._TRAIN_ON),
    ],
)
def test_every_value_of_the_contract_is_known(enum: object, table: dict[int, object]) -> None:
    assert set(enum.values()) == set(table)  # type: ignore[attr-defined]


def test_every_format_but_the_unset_one_is_known() -> None:
    assert set(dataset_pb2.Format.values()) - {0} == set(wire._FORMATS)


def test_every_stage_of_training_has_its_place() -> None:
    """004-01"""
    order = [Stage(name) for name in wire._STAGES]
    assert order == [
        Stage.DATA_DOWNLOAD,
        Stage.INITIALIZATION,
        Stage.TRAINING,
        Stage.SAVING,
        Stage.UPLOAD,
    ]


def test_full_fine_tuning_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        plan_of(a_lease(mode=spec_pb2.MODE_FULL))
    assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING


def test_a_multi_run_holds_a_tenth_out_unless_it_is_told_not_to() -> None:
    """002-18, 002-19"""
    config = spec_pb2.MultiRunConfig(run_count=3, samples_per_run=9, validate_every_run=True)
    lease = a_lease()
    lease.train.training.multi_run.CopyFrom(config)
    plan = plan_of(lease)
    assert plan.multi_run == MultiRunPlan(
        run_count=3,
        samples_per_run=9,
        in_order=False,
        drift_minimum_cosine=0.0,
        eval_maximum_regression=None,
    )
    assert plan.data.validation is not None
    assert plan.data.validation.holdout_ratio == 0.1
    lease.train.training.multi_run.validate_every_run = False
    assert plan_of(lease).data.validation is None
    lease.train.training.validation.holdout_ratio = 0.3
    assert plan_of(lease).data.validation.holdout_ratio == 0.3  # type: ignore[union-attr]
    assert plan_of(a_lease()).multi_run is None


def test_every_outcome_of_a_merge_is_in_the_contract() -> None:
    assert set(wire._OUTCOMES) == set(MergeOutcome)
    assert set(wire._OUTCOMES.values()) == set(run_pb2.MergeOutcome.values()) - {0}


def test_a_figure_that_was_not_measured_is_no_field() -> None:
    record = MergeRecord(
        number=1, outcome=MergeOutcome.DRIFTED, step=4, step_count=4, weight=1.0, drift_cosine=0.0,
        delta_norm=None, loss_begin=2.0, loss_end=1.0, held_out_loss_before=None,
        held_out_loss_after=None, sha256="",
    )  # fmt: skip
    merge = wire.merge(record)
    assert merge.outcome == run_pb2.MERGE_OUTCOME_DRIFTED
    assert merge.HasField("drift_cosine")
    assert not merge.HasField("delta_norm")
    assert not merge.HasField("held_out_loss_after")


def test_dataset_without_a_format_is_refused() -> None:
    lease = a_lease()
    lease.train.datasets[0].format = dataset_pb2.FORMAT_UNSPECIFIED
    with pytest.raises(Fault) as caught:
        plan_of(lease)
    assert caught.value.code is FaultCode.DATASET_FORMAT_UNKNOWN


def a_step(step: int, remaining_seconds: float | None) -> StepTaken:
    return StepTaken(
        step=step, total_steps=40, epoch=1, total_epochs=2, loss=0.5, learning_rate=1e-3,
        grad_norm=1.0, tokens_per_second=10.0, real_token_ratio=1.0, memory_bytes=1,
        remaining_seconds=remaining_seconds, validation_loss=None, micro_batch_size=4,
        accumulation_steps=2, trained_token_count=100,
    )  # fmt: skip


def test_progress_ends_at_a_hundred_percent() -> None:
    """001-12, 001-13, 001-15"""
    shares = [wire.metrics(a_step(step, None)).progress_percent for step in (1, 20, 40)]
    assert shares == [2.5, 50.0, 100.0]
    assert wire.metrics(a_step(1, None)).loss == 0.5
    assert wire.metrics(a_step(1, None)).total_epochs == 2


def test_no_estimate_is_no_field() -> None:
    """001-14"""
    assert not wire.metrics(a_step(1, None)).HasField("remaining")
    assert wire.metrics(a_step(6, 12.5)).remaining.seconds == 12
