"""Work protos ⇄ the trainer's own values; pure, and total over the enums."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import duration_pb2

from chassis.enums import by_number
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from trainer.domain.continual import MergeOutcome, MergeRecord
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
    MultiRunPlan,
    Objective,
    OptimisationPlan,
    Places,
    PreferencePlan,
    TrainPlan,
    ValidationPlan,
)
from trainer.pipe import Sample, StepTaken, Warned
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

NANOSECONDS = 1_000_000_000
# Of a multi-run that validates and says no more; the contract names it.
DEFAULT_HOLDOUT_RATIO = 0.1

# What a lease leaves unset means what the validator fills in for it.
_METHODS: Mapping[int, Method] = {
    spec_pb2.METHOD_UNSPECIFIED: Method.SFT,
    **by_number(spec_pb2.Method, Method),
}
_BACKENDS: Mapping[int, Backend] = {
    spec_pb2.BACKEND_UNSPECIFIED: Backend.AUTO,
    **by_number(spec_pb2.Backend, Backend),
}
_SCHEDULES: Mapping[int, Schedule] = {
    spec_pb2.SCHEDULE_UNSPECIFIED: Schedule.COSINE,
    **by_number(spec_pb2.Schedule, Schedule),
}
_OPTIMIZERS: Mapping[int, Optimizer] = {
    spec_pb2.OPTIMIZER_UNSPECIFIED: Optimizer.ADAMW_TORCH,
    **by_number(spec_pb2.Optimizer, Optimizer),
}
_PRECISIONS: Mapping[int, Precision] = {
    spec_pb2.PRECISION_UNSPECIFIED: Precision.AUTO,
    **by_number(spec_pb2.Precision, Precision),
}
_TRAIN_ON: Mapping[int, TrainOn] = {
    spec_pb2.TRAIN_ON_UNSPECIFIED: TrainOn.RESPONSES,
    **by_number(spec_pb2.TrainOn, TrainOn),
}
_FORMATS: Mapping[int, str] = {
    dataset_pb2.FORMAT_MESSAGES: "messages",
    dataset_pb2.FORMAT_CONVERSATIONS: "conversations",
    dataset_pb2.FORMAT_INSTRUCTION: "instruction",
    dataset_pb2.FORMAT_PROMPT_COMPLETION: "prompt_completion",
    dataset_pb2.FORMAT_INPUT_OUTPUT: "input_output",
    dataset_pb2.FORMAT_TEXT: "text",
    dataset_pb2.FORMAT_PREFERENCE: "preference",
    dataset_pb2.FORMAT_KTO: "kto",
}
_OUTCOMES: Mapping[MergeOutcome, int] = {
    MergeOutcome.MERGED: run_pb2.MERGE_OUTCOME_MERGED,
    MergeOutcome.NOT_FINITE: run_pb2.MERGE_OUTCOME_NOT_FINITE,
    MergeOutcome.DRIFTED: run_pb2.MERGE_OUTCOME_DRIFTED,
    MergeOutcome.REGRESSED: run_pb2.MERGE_OUTCOME_REGRESSED,
    MergeOutcome.NOT_VALIDATED: run_pb2.MERGE_OUTCOME_NOT_VALIDATED,
}
_STAGES: Mapping[str, int] = {
    "data_download": fault_pb2.STAGE_DATA_DOWNLOAD,
    "initialization": fault_pb2.STAGE_INITIALIZATION,
    "training": fault_pb2.STAGE_TRAINING,
    "saving": fault_pb2.STAGE_SAVING,
    "upload": fault_pb2.STAGE_UPLOAD,
}


def plan_from_lease(
    lease: work_pb2.Lease,
    *,
    base: Base,
    dataset_paths: Sequence[Path],
    validation_path: Path | None,
    checkpoint_folders: Sequence[Path],
    work_folder: Path,
    log_path: Path,
) -> TrainPlan:
    """The plan of a leased task whose files are on the disk.

    Raises:
        Fault: CONFIG_INVALID_SETTING for what this trainer does not do.
    """
    task, training = lease.train, lease.train.training
    _require_supported(training)
    return TrainPlan(
        attempt=Attempt(run=lease.run, number=lease.attempt, fencing_epoch=lease.fencing_epoch),
        places=Places(
            work_folder=str(work_folder),
            log_path=str(log_path),
            checkpoint_folder=str(checkpoint_folders[0]) if checkpoint_folders else None,
            earlier_checkpoint_folders=tuple(map(str, checkpoint_folders[1:])),
        ),
        base=base,
        data=DataPlan(
            datasets=tuple(
                _dataset(given, path)
                for given, path in zip(task.datasets, dataset_paths, strict=True)
            ),
            validation=_validation(task, validation_path),
            sample_prompts=tuple(task.sample_prompts),
        ),
        objective=Objective(
            method=_METHODS[training.method],
            preference=_preference(training),
            train_on=_TRAIN_ON[training.train_on],
            max_sequence_tokens=training.max_sequence_tokens,
        ),
        build=Build(
            adapter=_adapter(task.lora), gradient_checkpointing=training.gradient_checkpointing
        ),
        batches=_batches(training),
        optimisation=_optimisation(training),
        compute=_compute(training),
        checkpoints=CheckpointPlan(
            every_steps=training.checkpoint_every_steps,
            keep_count=training.checkpoint_keep_count,
        ),
        multi_run=_multi_run(training),
    )


def metrics(taken: StepTaken) -> run_pb2.RunMetrics:
    """The figures of a step."""
    message = run_pb2.RunMetrics(
        step=taken.step,
        total_steps=taken.total_steps,
        epoch=taken.epoch,
        total_epochs=taken.total_epochs,
        progress_percent=100.0 * taken.step / taken.total_steps,
        loss=taken.loss,
        learning_rate=taken.learning_rate,
        grad_norm=taken.grad_norm,
        tokens_per_second=taken.tokens_per_second,
        real_token_ratio=taken.real_token_ratio,
        memory_bytes=taken.memory_bytes,
        micro_batch_size=taken.micro_batch_size,
        accumulation_steps=taken.accumulation_steps,
        trained_token_count=taken.trained_token_count,
    )
    if taken.remaining_seconds is not None:
        message.remaining.CopyFrom(duration(taken.remaining_seconds))
    if taken.validation_loss is not None:
        message.validation_loss = taken.validation_loss
    if taken.preference_margin is not None:
        message.preference_margin = taken.preference_margin
    if taken.preference_accuracy is not None:
        message.preference_accuracy = taken.preference_accuracy
    return message


def stage_report(stage: str) -> work_service_pb2.TaskReport:
    """The report that a stage began."""
    return work_service_pb2.TaskReport(stage=_STAGES[stage])  # type: ignore[arg-type]


def clock_report(*, paused: bool, reason: str) -> work_service_pb2.TaskReport:
    """The report that the billable clock stops for a while, or goes on."""
    change = work_service_pb2.ClockPaused(paused=paused, reason=reason)
    return work_service_pb2.TaskReport(clock_paused=change)


def warning(warned: Warned) -> run_pb2.RunWarning:
    """A warning; its time is given by the scheduler's clock."""
    return run_pb2.RunWarning(code=warned.code, message=warned.message)


def sample(answer: Sample) -> run_pb2.Sample:
    """One sample."""
    return run_pb2.Sample(
        prompt=answer.prompt,
        completion=answer.completion,
        base_completion=answer.base_completion,
        flags=list(answer.flags),
        step=answer.step,
    )


def merge(record: MergeRecord) -> run_pb2.RunMerge:
    """One run of the merge history."""
    return run_pb2.RunMerge(
        number=record.number,
        outcome=_OUTCOMES[record.outcome],  # type: ignore[arg-type]
        step=record.step,
        weight=record.weight,
        drift_cosine=record.drift_cosine,
        delta_norm=record.delta_norm,
        loss_begin=record.loss_begin,
        loss_end=record.loss_end,
        held_out_loss_before=record.held_out_loss_before,
        held_out_loss_after=record.held_out_loss_after,
        sha256=record.sha256,
    )


def samples_report(
    samples: Sequence[run_pb2.Sample], merges: Sequence[run_pb2.RunMerge]
) -> work_service_pb2.TaskReport:
    """The report of what training sends beside its metrics, before its end."""
    taken = work_service_pb2.SamplesTaken(samples=samples, merges=merges)
    return work_service_pb2.TaskReport(samples=taken)


def duration(seconds: float) -> duration_pb2.Duration:
    """A span of time, at least 0."""
    whole, rest = divmod(max(0.0, seconds), 1.0)
    return duration_pb2.Duration(seconds=int(whole), nanos=int(rest * NANOSECONDS))


def _dataset(given: work_pb2.DatasetInput, path: Path) -> DatasetFile:
    if given.format not in _FORMATS:
        raise Fault(FaultCode.DATASET_FORMAT_UNKNOWN, f"Dataset {given.name} came without a format")
    return DatasetFile(
        name=given.name,
        format=_FORMATS[given.format],
        path=str(path),
        digest=given.file.sha256,
    )


def _adapter(lora: spec_pb2.LoraConfig) -> AdapterPlan:
    return AdapterPlan(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=tuple(lora.target_modules) or ("all-linear",),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )


def _batches(training: spec_pb2.TrainingConfig) -> BatchPlan:
    return BatchPlan(
        seed=training.seed,
        epochs=training.epochs,
        max_steps=training.max_steps,
        micro_batch_size=training.micro_batch_size,
        accumulation_steps=training.accumulation_steps,
        packing=training.packing,
        oom_recovery=training.oom_recovery,
    )


def _optimisation(training: spec_pb2.TrainingConfig) -> OptimisationPlan:
    return OptimisationPlan(
        optimizer=_OPTIMIZERS[training.optimizer],
        lr_peak=training.learning_rate,
        schedule=_SCHEDULES[training.schedule],
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
    )


def _compute(training: spec_pb2.TrainingConfig) -> ComputePlan:
    return ComputePlan(
        backend=_BACKENDS[training.backend],
        precision=_PRECISIONS[training.precision],
        load_in_4bit=training.load_in_4bit,
        torch_compile=training.torch_compile,
        unsloth_fallback=training.unsloth_fallback,
    )


def _validation(task: work_pb2.TrainTask, path: Path | None) -> ValidationPlan | None:
    config = task.training.validation
    if not task.training.HasField("validation"):
        multi_run = task.training.multi_run
        if not (task.training.HasField("multi_run") and multi_run.validate_every_run):
            return None
        config = spec_pb2.ValidationConfig(holdout_ratio=DEFAULT_HOLDOUT_RATIO)
    return ValidationPlan(
        holdout_ratio=config.holdout_ratio,
        dataset=_dataset(task.validation, path) if path else None,
        every_steps=config.every_steps,
        early_stop_patience=config.early_stop_patience,
        early_stop_min_delta=config.early_stop_min_delta,
    )


def _preference(training: spec_pb2.TrainingConfig) -> PreferencePlan | None:
    if _METHODS[training.method] is Method.SFT:
        return None
    config = training.preference
    return PreferencePlan(
        beta=config.beta,
        simpo_gamma=config.simpo_gamma,
        desirable_weight=config.desirable_weight if config.HasField("desirable_weight") else None,
        undesirable_weight=(
            config.undesirable_weight if config.HasField("undesirable_weight") else None
        ),
    )


def _multi_run(training: spec_pb2.TrainingConfig) -> MultiRunPlan | None:
    if not training.HasField("multi_run"):
        return None
    config = training.multi_run
    has_limit = config.HasField("eval_maximum_regression")
    return MultiRunPlan(
        run_count=config.run_count,
        samples_per_run=config.samples_per_run,
        in_order=config.in_order,
        drift_minimum_cosine=config.drift_minimum_cosine,
        eval_maximum_regression=config.eval_maximum_regression if has_limit else None,
    )


def _require_supported(training: spec_pb2.TrainingConfig) -> None:
    """The validator says the same at submission; a plan from elsewhere is not believed."""
    refused = {
        "fp8": _PRECISIONS[training.precision] is Precision.FP8,
        # Stores, exports and downloads know adapters only: nobody could take whole weights home.
        "full fine-tuning": training.mode == spec_pb2.MODE_FULL,
    }
    for what, wanted in refused.items():
        if wanted:
            raise Fault(
                FaultCode.CONFIG_INVALID_SETTING, f"This node does not do: {what}", setting=what
            )
