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

    `digest` names the exact bytes, so that a cached model is only used again for the same ones.
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
class Attempt:
    """Who trains: a run, and which of its attempts this is; `number` counts from 1."""

    run: str
    number: int
    fencing_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where an attempt reads and writes on the local disk.

    Attributes:
        checkpoint_folder: the newest checkpoint of an earlier attempt; None to begin at step 0.
        earlier_checkpoint_folders: what to go on from where that one cannot be used, newest first.
    """

    work_folder: str
    log_path: str
    checkpoint_folder: str | None
    earlier_checkpoint_folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """The rows to train on, those to validate on, and the prompts to ask."""

    datasets: tuple[DatasetFile, ...]
    validation: ValidationPlan | None
    sample_prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is learnt of a row, and how much of it is read."""

    method: Method
    preference: PreferencePlan | None
    train_on: TrainOn
    max_sequence_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What an adapted model is built by; models of equal builds differ in their weights alone."""

    adapter: AdapterPlan
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How many steps there are, which examples each of them holds, and how it fits into memory."""

    seed: int
    epochs: int
    max_steps: int
    micro_batch_size: int
    accumulation_steps: int
    packing: bool
    oom_recovery: bool

    @property
    def effective_batch_size(self) -> int:
        """Examples of one optimizer step."""
        return self.micro_batch_size * self.accumulation_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimisationPlan:
    """How a step moves the weights."""

    optimizer: Optimizer
    lr_peak: float
    schedule: Schedule
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePlan:
    """What a run computes on, and in which numbers."""

    backend: Backend
    precision: Precision
    load_in_4bit: bool
    torch_compile: bool
    unsloth_fallback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """How often a checkpoint is written, 0 for by the length of the run, and how many are kept."""

    every_steps: int
    keep_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """Everything the training child needs; paths are local, and nothing in it is secret.

    Each part belongs to the modules that read it. The whole plan is for those that compose a run
    (`run`, `delivery`), describe it (`card`, `tracking`), or check it as a whole (`mlx`,
    `libraries`).
    """

    attempt: Attempt
    places: Places
    base: Base
    data: DataPlan
    objective: Objective
    build: Build
    batches: BatchPlan
    optimisation: OptimisationPlan
    compute: ComputePlan
    checkpoints: CheckpointPlan
    multi_run: MultiRunPlan | None


def total_steps(batches: BatchPlan, *, row_count: int) -> int:
    """Optimizer steps of the whole run: `max_steps`, or all epochs over the rows."""
    if batches.max_steps > 0:
        return batches.max_steps
    return batches.epochs * steps_per_epoch(batches, row_count=row_count)


def steps_per_epoch(batches: BatchPlan, *, row_count: int) -> int:
    """Optimizer steps of one pass; the last step of a pass may hold fewer examples."""
    return math.ceil(row_count / batches.effective_batch_size)


def total_epochs(batches: BatchPlan, *, row_count: int) -> int:
    """Passes over the rows that the run begins."""
    return math.ceil(
        total_steps(batches, row_count=row_count) / steps_per_epoch(batches, row_count=row_count)
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
    checkpoints: CheckpointPlan, *, step: int, steps: int, last_step: int, seconds_since: float
) -> bool:
    """Whether a checkpoint follows optimizer step `step` (from 1) of `steps`.

    Args:
        last_step: step of the checkpoint before; where the attempt began, without one.
        seconds_since: how long ago that was.
    """
    if step == steps:
        return True
    if checkpoints.every_steps:
        return step % checkpoints.every_steps == 0
    interval = math.ceil(steps / CHECKPOINTS_PER_RUN)
    return step - last_step >= interval and seconds_since >= CHECKPOINT_SECONDS_MIN


def essence(plan: TrainPlan) -> dict[str, object]:
    """The plan without what differs between two attempts of one run: places, and who they are.

    Its JSON is hashed into every checkpoint, and a checkpoint is only used by a run of the same
    hash. So names, order and values stay as they are, whatever the parts of a plan are called.
    """
    validation = plan.data.validation
    if validation and validation.dataset:
        validation = replace(validation, dataset=replace(validation.dataset, path=""))
    objective, batches, optimisation = plan.objective, plan.batches, plan.optimisation
    return {
        "run": plan.attempt.run,
        "attempt": 0,
        "fencing_epoch": 0,
        "base": replace(plan.base, folder=""),
        "datasets": tuple(replace(dataset, path="") for dataset in plan.data.datasets),
        "adapter": plan.build.adapter,
        "method": objective.method,
        "backend": plan.compute.backend,
        "epochs": batches.epochs,
        "max_steps": batches.max_steps,
        "micro_batch_size": batches.micro_batch_size,
        "accumulation_steps": batches.accumulation_steps,
        "lr_peak": optimisation.lr_peak,
        "schedule": optimisation.schedule,
        "warmup_ratio": optimisation.warmup_ratio,
        "weight_decay": optimisation.weight_decay,
        "max_grad_norm": optimisation.max_grad_norm,
        "max_sequence_tokens": objective.max_sequence_tokens,
        "packing": batches.packing,
        "gradient_checkpointing": plan.build.gradient_checkpointing,
        "optimizer": optimisation.optimizer,
        "precision": plan.compute.precision,
        "seed": batches.seed,
        "oom_recovery": batches.oom_recovery,
        "unsloth_fallback": plan.compute.unsloth_fallback,
        "load_in_4bit": plan.compute.load_in_4bit,
        "torch_compile": plan.compute.torch_compile,
        "train_on": objective.train_on,
        "checkpoint_every_steps": plan.checkpoints.every_steps,
        "checkpoint_keep_count": plan.checkpoints.keep_count,
        "validation": validation,
        "preference": objective.preference,
        "multi_run": plan.multi_run,
        "sample_prompts": plan.data.sample_prompts,
        "work_folder": "",
        "log_path": "",
        "checkpoint_folder": None,
        "earlier_checkpoint_folders": (),
    }


def validation_interval(validation: ValidationPlan, *, steps: int) -> int:
    """Steps between two validations."""
    return validation.every_steps or max(1, math.ceil(steps / VALIDATIONS_PER_RUN))
