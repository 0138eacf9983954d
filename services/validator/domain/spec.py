"""A submission as values of the validator; None is a field that was left out."""

import enum
from dataclasses import dataclass, field

from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn


class Mode(enum.StrEnum):
    """Which parameters train."""

    LORA = "lora"
    FULL = "full"


class Preset(enum.StrEnum):
    """Set of defaults."""

    SAFE = "safe"
    FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Validation while training."""

    holdout_ratio: float | None = None
    dataset: str = ""
    every_steps: int | None = None
    early_stop_patience: int | None = None
    early_stop_min_delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Settings of the preference objectives."""

    beta: float | None = None
    simpo_gamma: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiRun:
    """Several short runs merged into one adapter."""

    run_count: int = 0
    samples_per_run: int = 0
    validate_every_run: bool | None = None
    drift_minimum_cosine: float | None = None
    eval_maximum_regression: float | None = None
    in_order: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """When a hot GPU warns, pauses and aborts, in degrees Celsius."""

    warn_celsius: float | None = None
    pause_celsius: float | None = None
    abort_celsius: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train; the contract describes each field."""

    method: Method | None = None
    mode: Mode | None = None
    backend: Backend | None = None
    epochs: int | None = None
    max_steps: int | None = None
    micro_batch_size: int | None = None
    accumulation_steps: int | None = None
    learning_rate: float | None = None
    schedule: Schedule | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    max_sequence_tokens: int | None = None
    packing: bool | None = None
    gradient_checkpointing: bool | None = None
    optimizer: Optimizer | None = None
    precision: Precision | None = None
    seed: int | None = None
    oom_recovery: bool | None = None
    unsloth_fallback: bool | None = None
    load_in_4bit: bool | None = None
    torch_compile: bool | None = None
    train_on: TrainOn | None = None
    preset: Preset | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_keep_count: int | None = None
    validation: Validation | None = None
    preference: Preference | None = None
    multi_run: MultiRun | None = None
    temperature: Temperature | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapter."""

    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    target_modules: tuple[str, ...] = ()
    use_rslora: bool | None = None
    use_dora: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestations:
    """What the user attests."""

    dataset_rights: bool = False
    model_license: bool = False
    refund_waived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The GGUF export."""

    gguf: bool | None = None
    quantizations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of money and time."""

    max_amount_micros: int | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A submission; a part that is None is missing."""

    base_model: str = ""
    datasets: tuple[str, ...] = ()
    training: Training | None = None
    lora: Lora | None = None
    gpu_tier: str = ""
    attestations: Attestations | None = None
    export: Export = field(default_factory=Export)
    budget: Budget = field(default_factory=Budget)
    sample_prompts: tuple[str, ...] = ()
