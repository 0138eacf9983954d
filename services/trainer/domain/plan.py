"""What one run trains, with every default filled in and every file on the local disk."""

import math
from dataclasses import dataclass, replace

from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn

# Without a wish of the user a run leaves ten checkpoints behind: a lost node costs a tenth of it.
CHECKPOINTS_PER_RUN = 10
# A short run leaves fewer: storing them more often would cost more than the steps they save.
CHECKPOINT_SECONDS_MIN = 5.0
VALIDATIONS_PER_RUN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFile:
    """One dataset version on the local disk; `digest` is the file's sha256, if it is known."""

    name: str
    format: str
    path: str
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model: its id as the user gave it, and its folder on the local disk.

    `digest` names the exact bytes, so that a warm model is only used again for the same ones.
    """

    base_model: str
    model_id: str
    revision: str
    folder: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """The LoRA adapter; the delta B·A is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank))."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    use_rslora: bool
    use_dora: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPlan:
    """When to validate, on which share of the rows, and when to stop early."""

    holdout_ratio: float
    dataset: DatasetFile | None
    every_steps: int
    early_stop_patience: int
    early_stop_min_delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePlan:
    """The constants of the methods that learn from preferences.

    Attributes:
        beta: strength of the preference.
        simpo_gamma: the margin that SimPO wants; no other method reads it.
        desirable_weight, undesirable_weight: weights of KTO's examples; None for by balance.
    """

    beta: float
    simpo_gamma: float
    desirable_weight: float | None
    undesirable_weight: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiRunPlan:
    """Continual training: several runs, each on samples of its own, merged one after another.

    Attributes:
        samples_per_run: fresh samples of each run; `epochs` and `max_steps` are those of a run.
        in_order: take them in the order of the datasets and their rows, not shuffled.
        drift_minimum_cosine: smallest cosine between the B before and the B of a run.
        eval_maximum_regression: largest rise of the held-out loss; None for any.
    """

    run_count: int
    samples_per_run: int
    in_order: bool
    drift_minimum_cosine: float
    eval_maximum_regression: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """Everything the training child needs; paths are local, and nothing in it is secret.

    Attributes:
        checkpoint_folder: the newest checkpoint of an earlier attempt; None to begin anew.
        earlier_checkpoint_folders: what to go on from where that one cannot be used, newest first.
    """

    run: str
    attempt: int
    fencing_epoch: int
    base: Base
    datasets: tuple[DatasetFile, ...]
    adapter: AdapterPlan
    method: Method
    backend: Backend
    epochs: int
    max_steps: int
    micro_batch_size: int
    accumulation_steps: int
    lr_peak: float
    schedule: Schedule
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_sequence_tokens: int
    packing: bool
    gradient_checkpointing: bool
    optimizer: Optimizer
    precision: Precision
    seed: int
    oom_recovery: bool
    unsloth_fallback: bool
    load_in_4bit: bool
    torch_compile: bool
    train_on: TrainOn
    checkpoint_every_steps: int
    checkpoint_keep_count: int
    validation: ValidationPlan | None
    preference: PreferencePlan | None
    multi_run: MultiRunPlan | None
    sample_prompts: tuple[str, ...]
    work_folder: str
    log_path: str
    checkpoint_folder: str | None
    earlier_checkpoint_folders: tuple[str, ...] = ()

    @property
    def effective_batch_size(self) -> int:
        """Examples of one optimizer step."""
        return self.micro_batch_size * self.accumulation_steps


def total_steps(plan: TrainPlan, *, row_count: int) -> int:
    """Optimizer steps of the whole run: `max_steps`, or all epochs over the rows."""
    if plan.max_steps > 0:
        return plan.max_steps
    return plan.epochs * steps_per_epoch(plan, row_count=row_count)


def steps_per_epoch(plan: TrainPlan, *, row_count: int) -> int:
    """Optimizer steps of one pass; the last step of a pass may hold fewer examples."""
    return math.ceil(row_count / plan.effective_batch_size)


def total_epochs(plan: TrainPlan, *, row_count: int) -> int:
    """Passes over the rows that the run begins."""
    return math.ceil(
        total_steps(plan, row_count=row_count) / steps_per_epoch(plan, row_count=row_count)
    )


def verdict_weights(
    preference: PreferencePlan, *, desirable_count: int, undesirable_count: int
) -> tuple[float, float]:
    """Weights of (desirable, undesirable) examples.

    What is left to balance makes both kinds weigh the same in all: the rarer kind gets more than 1,
    unless the other kind's weight was given. Without examples of both kinds there is no balance.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2: the weights times the counts of
        the two kinds should be as 1:1 up to 4:3.
    """
    both = desirable_count and undesirable_count
    ratio = undesirable_count / desirable_count if both else 1.0
    desirable, undesirable = preference.desirable_weight, preference.undesirable_weight
    if desirable is None:
        desirable = max(1.0, ratio) if undesirable is None else undesirable * ratio
    if undesirable is None:
        undesirable = desirable / ratio
    return desirable, undesirable


def checkpoint_due(
    plan: TrainPlan, *, step: int, steps: int, last_step: int, seconds_since: float
) -> bool:
    """Whether a checkpoint follows optimizer step `step` (from 1) of `steps`.

    Args:
        last_step: step of the checkpoint before; where the attempt began, without one.
        seconds_since: how long ago that was.
    """
    if step == steps:
        return True
    if plan.checkpoint_every_steps:
        return step % plan.checkpoint_every_steps == 0
    interval = math.ceil(steps / CHECKPOINTS_PER_RUN)
    return step - last_step >= interval and seconds_since >= CHECKPOINT_SECONDS_MIN


def essence(plan: TrainPlan) -> TrainPlan:
    """The plan without what differs between two attempts of one run: places, and who they are."""
    validation = plan.validation
    if validation and validation.dataset:
        validation = replace(validation, dataset=replace(validation.dataset, path=""))
    return replace(
        plan,
        attempt=0,
        fencing_epoch=0,
        base=replace(plan.base, folder=""),
        datasets=tuple(replace(dataset, path="") for dataset in plan.datasets),
        validation=validation,
        work_folder="",
        log_path="",
        checkpoint_folder=None,
        earlier_checkpoint_folders=(),
    )


def validation_interval(validation: ValidationPlan, *, steps: int) -> int:
    """Steps between two validations."""
    return validation.every_steps or max(1, math.ceil(steps / VALIDATIONS_PER_RUN))
