"""Memory, storage, time and price of a run, compared with its tier, quota and plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from corpus.packing import holdout_count
from lexicon.faults import Fault, FaultCode
from modelspec.artifact import artifact_bytes
from modelspec.catalog import Tier
from modelspec.duration import (
    Workload,
    estimate_seconds,
    estimate_tokens_per_row,
    expected_minutes,
    maximum_minutes,
    timeout_seconds,
)
from modelspec.lora import resolve_targets
from modelspec.recipe import Method, Precision
from modelspec.shape import ModelShape
from modelspec.vram import (
    OptimizerState,
    TrainingLoad,
    VramEstimate,
    estimate_vram,
    largest_micro_batch,
)
from validator.domain.case import Case
from validator.domain.facts import LabelFacts
from validator.domain.filling import holdout_ratio
from validator.domain.finding import CheckOutcome, info, outcome, red
from validator.domain.ranges import ranges_hold
from validator.domain.settings import EIGHT_BIT
from validator.domain.spec import Training

GIB = 1 << 30
# Objectives that run two continuations of a prompt through the model at once.
PAIRED = frozenset({Method.DPO, Method.ORPO, Method.SIMPO})
NOT_KNOWN = "not estimated: model, tier or settings are not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Estimates of a valid run.

    Attributes:
        seconds: from the first step to the stored adapter.
        timeout_seconds: after so long it is stopped, its work kept.
        maximum_minutes: most that may be charged; the budget may lower it.
    """

    load: TrainingLoad
    vram: VramEstimate
    artifact_bytes: int
    step_count: int
    seconds: float
    timeout_seconds: int
    expected_minutes: int
    maximum_minutes: int


def estimate(case: Case) -> Needs | None:
    """The estimates; None when facts are missing."""
    shape, tier, model = case.shape, case.tier, case.model
    datasets = case.facts.found_datasets()
    if shape is None or tier is None or model is None or not datasets or not ranges_hold(case):
        return None
    try:
        resolve_targets(case.lora.target_modules, shape)
    except Fault:
        return None
    load = training_load(case.training, tier)
    work = _workload(case, row_count=sum(dataset.row_count for dataset in datasets))
    seconds = estimate_seconds(shape, case.lora_spec, work, tier)
    given = case.spec.budget.timeout_seconds
    timeout = timeout_seconds(seconds) if given is None else math.ceil(given)
    most = _affordable(maximum_minutes(timeout), case, tier)
    return Needs(
        load=load,
        vram=estimate_vram(shape, case.lora_spec, load),
        artifact_bytes=artifact_bytes(
            case.lora_spec,
            shape,
            quantizations=case.export.quantizations,
            tokenizer_bytes=model.tokenizer_bytes,
            merge_count=case.training.multi_run.run_count if case.training.multi_run else 0,
        ),
        step_count=work.step_count,
        seconds=seconds,
        timeout_seconds=timeout,
        expected_minutes=min(most, expected_minutes(min(seconds, timeout))),
        maximum_minutes=most,
    )


def training_load(training: Training, tier: Tier) -> TrainingLoad:
    """The settings that determine the memory of a step on this tier."""
    assert training.micro_batch_size is not None
    assert training.max_sequence_tokens is not None
    narrow = tier.is_gpu and training.precision is not Precision.FP32
    return TrainingLoad(
        micro_batch_size=training.micro_batch_size,
        sequence_tokens=training.max_sequence_tokens,
        is_gpu=tier.is_gpu,
        compute_bytes=2 if narrow or training.precision is Precision.BF16 else 4,
        gradient_checkpointing=bool(training.gradient_checkpointing),
        packing=bool(training.packing),
        load_in_4bit=bool(training.load_in_4bit),
        optimizer=(
            OptimizerState.ADAMW_8BIT if training.optimizer in EIGHT_BIT else OptimizerState.ADAMW
        ),
        sequences_per_example=2 if training.method in PAIRED else 1,
    )


def check_memory(case: Case, needs: Needs | None) -> CheckOutcome:
    """The model fits the tier, by its size (000-08) and by the estimate of the worst batch."""
    shape, tier = case.shape, case.tier
    if shape is None or tier is None:
        return outcome(NOT_KNOWN)
    count = shape.parameter_count()
    if count > tier.largest_parameter_count:
        larger = [
            other.tier
            for other in case.catalog.tiers.values()
            if other.is_gpu and count <= other.largest_parameter_count
        ]
        fault = Fault(
            FaultCode.CAPACITY_NO_GPU_FITS,
            f"A model of {count / 1e9:.1f} billion parameters does not train on tier {tier.tier} "
            f"({tier.hardware}); tiers that take it: {', '.join(larger) or 'none'}.",
            parameters=count,
            tier=tier.tier,
            tiers=", ".join(larger),
        )
        return outcome("", [red(fault, "gpu_tier")])
    if needs is None:
        return outcome(NOT_KNOWN)
    total = needs.vram.total_bytes
    said = f"about {total / GIB:.1f} GiB of {tier.memory_bytes / GIB:.1f} GiB on {tier.tier}"
    if total <= tier.memory_bytes:
        return outcome(said)
    return outcome("", [red(_does_not_fit(case, shape, tier, needs), "gpu_tier")])


def check_quota(case: Case, needs: Needs | None) -> CheckOutcome:
    """Adapter and GGUF fit into the project's free storage (000-34)."""
    if needs is None:
        return outcome(NOT_KNOWN)
    free = max(0, case.facts.artifact_quota_bytes - case.facts.artifact_bytes)
    said = f"about {_size(needs.artifact_bytes)} of {_size(free)} free"
    if needs.artifact_bytes <= free:
        return outcome(said)
    fault = Fault(
        FaultCode.QUOTA_ARTIFACTS_EXCEEDED,
        f"LoRA and GGUF would take about {_size(needs.artifact_bytes)}, but only {_size(free)} of "
        f"{_size(case.facts.artifact_quota_bytes)} are free.",
        needed_bytes=needs.artifact_bytes,
        free_bytes=free,
        quota_bytes=case.facts.artifact_quota_bytes,
    )
    return outcome("", [red(fault, "export")])


def check_timeout(case: Case, needs: Needs | None) -> CheckOutcome:
    """The run may take longer than its estimate (003-24)."""
    if needs is None:
        return outcome(NOT_KNOWN)
    said = (
        f"{needs.step_count:,} steps, about {needs.seconds:.0f} s; "
        f"stopped after {needs.timeout_seconds} s"
    )
    if needs.timeout_seconds >= needs.seconds:
        return outcome(said)
    fault = Fault(
        FaultCode.CONFIG_VALUE_OUT_OF_RANGE,
        f"The timeout of {needs.timeout_seconds} s is shorter than the estimate of "
        f"{needs.seconds:.0f} s; the run will be stopped before its last step, its work kept.",
        remedy="Leave the timeout out, or set it to 1.3 times the estimate.",
        timeout_seconds=needs.timeout_seconds,
    )
    return outcome("", [info(fault, "budget.timeout")])


def check_cost(case: Case, needs: Needs | None) -> CheckOutcome:
    """The price is known before anything starts (003-27), and the budget pays a minute of it."""
    if needs is None or case.tier is None:
        return outcome(NOT_KNOWN)
    rate = case.tier.rate_micros_per_minute
    if needs.maximum_minutes < 1:
        fault = Fault(
            FaultCode.CONFIG_VALUE_OUT_OF_RANGE,
            f"The budget is less than one minute on tier {case.tier.tier} "
            f"({rate / 1e6:g} credits).",
            field="budget.max_amount_micros",
            rate_micros=rate,
        )
        return outcome("", [red(fault, "budget.max_amount_micros")])
    return outcome(
        f"about {needs.expected_minutes * rate / 1e6:g}, at most "
        f"{needs.maximum_minutes * rate / 1e6:g} credits"
    )


def _workload(case: Case, *, row_count: int) -> Workload:
    training = case.training
    assert training.micro_batch_size is not None
    assert training.accumulation_steps is not None
    assert training.epochs is not None
    assert training.max_steps is not None
    pool = row_count - holdout_count(row_count, ratio=holdout_ratio(training))
    work = Workload(
        row_count=max(1, pool),
        tokens_per_row=_tokens_per_row(case, row_count=row_count),
        micro_batch_size=training.micro_batch_size,
        accumulation_steps=training.accumulation_steps,
        epochs=training.epochs,
        max_steps=training.max_steps,
        gradient_checkpointing=bool(training.gradient_checkpointing),
    )
    if training.multi_run is None:
        return work
    # Each of the runs makes its passes over a slice of its own.
    one = replace(work, row_count=training.multi_run.samples_per_run)
    return replace(one, max_steps=one.step_count * training.multi_run.run_count)


def _tokens_per_row(case: Case, *, row_count: int) -> float:
    """Measured on the first rows when they were encoded, otherwise from the characters."""
    labels = case.facts.labels
    if isinstance(labels, LabelFacts) and labels.row_count:
        return max(1.0, labels.token_count / labels.row_count)
    assert case.training.max_sequence_tokens is not None
    return estimate_tokens_per_row(
        character_count=sum(each.character_count for each in case.facts.found_datasets()),
        row_count=row_count,
        sequence_tokens=case.training.max_sequence_tokens,
    )


def _affordable(minutes: int, case: Case, tier: Tier) -> int:
    budget = case.spec.budget.max_amount_micros
    if budget is None or tier.rate_micros_per_minute == 0:
        return minutes
    return min(minutes, budget // tier.rate_micros_per_minute)


def _does_not_fit(case: Case, shape: ModelShape, tier: Tier, needs: Needs) -> Fault:
    total = needs.vram.total_bytes
    advice = _advice(case, shape, tier, needs)
    return Fault(
        FaultCode.CAPACITY_NO_GPU_FITS,
        f"The run needs about {total / GIB:.1f} GiB, tier {tier.tier} has "
        f"{tier.memory_bytes / GIB:.1f} GiB (weights {needs.vram.weights_bytes / GIB:.1f}, "
        f"activations {needs.vram.activation_bytes / GIB:.1f}, "
        f"logits {needs.vram.logits_bytes / GIB:.1f} GiB). {' '.join(advice)}",
        remedy=" ".join(advice),
        estimated_bytes=total,
        available_bytes=tier.memory_bytes,
        tier=tier.tier,
    )


def _advice(case: Case, shape: ModelShape, tier: Tier, needs: Needs) -> Sequence[str]:
    """Settings and tiers that would fit, the nearest first."""
    advice: list[str] = []
    smaller = largest_micro_batch(shape, case.lora_spec, needs.load, memory_bytes=tier.memory_bytes)
    if smaller:
        factor = needs.load.micro_batch_size // smaller * (case.training.accumulation_steps or 1)
        advice.append(
            f"It fits with training.micro_batch_size {smaller} and training.accumulation_steps "
            f"{factor}."
        )
    else:
        advice.append(
            "Lower training.max_sequence_tokens, or take a smaller model of the same family."
        )
    for other in case.catalog.tiers.values():
        load = training_load(case.training, other)
        fits = estimate_vram(shape, case.lora_spec, load).total_bytes <= other.memory_bytes
        if other.is_gpu and fits and other.memory_bytes > tier.memory_bytes:
            advice.append(f"It fits as it is on tier {other.tier}.")
            break
    return advice


def _size(count: int) -> str:
    """Bytes for people, in the units of the quotas."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / (1 << 20):.1f} MiB"
