"""Fill in every default of a spec, by the preset, the tier and the model."""

from dataclasses import replace
from typing import TypeVar

from modelspec.artifact import DEFAULT_QUANTIZATION
from modelspec.catalog import Tier
from modelspec.lora import ALL_LINEAR
from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from modelspec.shape import ModelShape
from validator.domain.spec import (
    Export,
    Lora,
    Mode,
    MultiRun,
    Preference,
    Preset,
    Temperature,
    Training,
    Validation,
)

Value = TypeVar("Value")

DEFAULT_SEQUENCE_TOKENS = 2048
DEFAULT_RANK = 16
ALPHA_PER_RANK = 2.0
DEFAULT_HOLDOUT_RATIO = 0.1
# "No gate" in numbers: every cosine is at least -1, and no rise of a loss reaches this.
NO_DRIFT_GATE = -1.0


def fill_training(given: Training, *, tier: Tier | None, shape: ModelShape | None) -> Training:
    """A training config with every field set.

    When tier or model are unknown, fields that depend on them take the value for a small GPU and a
    long context; only checks that do not depend on them use such a config.
    """
    fast = given.preset is Preset.FAST
    gpu = tier is None or tier.is_gpu
    method = given.method or Method.SFT
    context = DEFAULT_SEQUENCE_TOKENS if shape is None else shape.context_tokens
    return Training(
        method=method,
        mode=given.mode or Mode.LORA,
        backend=given.backend or Backend.AUTO,
        epochs=_or(given.epochs, 1),
        max_steps=_or(given.max_steps, 0),
        micro_batch_size=_or(given.micro_batch_size, 8),
        accumulation_steps=_or(given.accumulation_steps, 1),
        learning_rate=_or(given.learning_rate, 2e-4),
        schedule=given.schedule or Schedule.COSINE,
        warmup_ratio=_or(given.warmup_ratio, 0.03),
        weight_decay=_or(given.weight_decay, 0.0),
        max_grad_norm=_or(given.max_grad_norm, 1.0),
        max_sequence_tokens=_or(given.max_sequence_tokens, min(DEFAULT_SEQUENCE_TOKENS, context)),
        packing=_or(given.packing, True),
        gradient_checkpointing=_or(given.gradient_checkpointing, gpu),
        optimizer=given.optimizer or Optimizer.ADAMW_TORCH,
        precision=given.precision or Precision.AUTO,
        seed=_or(given.seed, 42),
        oom_recovery=_or(given.oom_recovery, True),
        unsloth_fallback=_or(given.unsloth_fallback, True),
        load_in_4bit=_or(given.load_in_4bit, False),
        # Compiling pays on Hopper and fails on older cards.
        torch_compile=_or(
            given.torch_compile, fast and tier is not None and "fp8" in tier.capabilities
        ),
        train_on=given.train_on or TrainOn.RESPONSES,
        preset=given.preset or Preset.SAFE,
        checkpoint_every_steps=_or(given.checkpoint_every_steps, 0),
        checkpoint_keep_count=_or(given.checkpoint_keep_count, 1),
        validation=None if given.validation is None else _fill_validation(given.validation),
        preference=_fill_preference(given.preference or Preference(), method),
        multi_run=None if given.multi_run is None else _fill_multi_run(given.multi_run),
        temperature=_fill_temperature(given.temperature or Temperature()),
    )


def fill_lora(given: Lora) -> Lora:
    """An adapter with every field set."""
    rank = _or(given.rank, DEFAULT_RANK)
    return Lora(
        rank=rank,
        alpha=_or(given.alpha, ALPHA_PER_RANK * rank),
        dropout=_or(given.dropout, 0.0),
        target_modules=given.target_modules or (ALL_LINEAR,),
        use_rslora=_or(given.use_rslora, False),
        use_dora=_or(given.use_dora, False),
    )


def fill_export(given: Export) -> Export:
    """An export with every field set; each quantisation once."""
    gguf = _or(given.gguf, True)
    names = given.quantizations or (DEFAULT_QUANTIZATION,)
    return Export(gguf=gguf, quantizations=tuple(dict.fromkeys(names)) if gguf else ())


def holdout_ratio(training: Training) -> float:
    """Share of the rows that is held out and never trained on."""
    if training.multi_run is not None and training.multi_run.validate_every_run is not False:
        given = training.validation.holdout_ratio if training.validation else None
        return DEFAULT_HOLDOUT_RATIO if given is None else given
    if training.validation is None or training.validation.dataset:
        return 0.0
    given = training.validation.holdout_ratio
    return DEFAULT_HOLDOUT_RATIO if given is None else given


def _fill_validation(given: Validation) -> Validation:
    return replace(
        given,
        holdout_ratio=(0.0 if given.dataset else _or(given.holdout_ratio, DEFAULT_HOLDOUT_RATIO)),
        early_stop_patience=_or(given.early_stop_patience, 0),
        early_stop_min_delta=_or(given.early_stop_min_delta, 0.0),
    )


def _fill_preference(given: Preference, method: Method) -> Preference | None:
    if method is Method.SFT:
        return None
    return replace(
        given,
        beta=_or(given.beta, 2.0 if method is Method.SIMPO else 0.1),
        simpo_gamma=_or(given.simpo_gamma, 0.5) if method is Method.SIMPO else given.simpo_gamma,
    )


def _fill_multi_run(given: MultiRun) -> MultiRun:
    return replace(
        given,
        validate_every_run=_or(given.validate_every_run, True),
        drift_minimum_cosine=_or(given.drift_minimum_cosine, NO_DRIFT_GATE),
        in_order=_or(given.in_order, False),
    )


def _fill_temperature(given: Temperature) -> Temperature:
    return Temperature(
        warn_celsius=_or(given.warn_celsius, 80.0),
        pause_celsius=_or(given.pause_celsius, 90.0),
        abort_celsius=_or(given.abort_celsius, 95.0),
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
