"""Whether the settings are compatible: with each other, with the tier, with the backend."""

from collections.abc import Iterator

from corpus.packing import check_samples_per_run
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend, Method, Optimizer, Precision
from validator.domain.case import Case
from validator.domain.filling import holdout_ratio
from validator.domain.finding import CheckOutcome, Finding, info, outcome, red
from validator.domain.spec import Mode

EIGHT_BIT = frozenset({Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT})


def check_settings(case: Case) -> CheckOutcome:
    """Refuses combinations that no node can run."""
    findings = [
        *_mode(case),
        *_mlx(case),
        *_hardware(case),
        *_temperature(case),
        *_multi_run(case),
    ]
    return outcome("the settings go together", findings)


def _mode(case: Case) -> Iterator[Finding]:
    if case.training.mode is Mode.FULL:
        yield _refuse(
            "training.mode",
            "Full fine-tuning is not offered: only the adapter trains. Use the LoRA mode.",
        )


def _mlx(case: Case) -> Iterator[Finding]:
    """The MLX backend supports LoRA by SFT, on Apple silicon (002-37, 002-38).

    Only the scheduler knows whether a node of the tier has the capability; it refuses the run when
    none has.
    """
    training, tier = case.training, case.tier
    if training.backend is not Backend.MLX:
        return
    if tier is not None and tier.is_gpu:
        yield _refuse(
            "training.backend",
            f"The MLX backend needs macOS on Apple silicon; tier {tier.tier} is {tier.hardware}. "
            "Use the backend auto.",
        )
    yield info(
        Fault(
            FaultCode.CONFIG_INVALID_SETTING,
            "The MLX backend is experimental: it has not been verified on Apple hardware. It does "
            "not pack rows, and only nodes on which mlx-lm works take the run.",
            remedy="Use the backend auto.",
            field="training.backend",
        ),
        "training.backend",
    )
    if training.method is not Method.SFT:
        yield _refuse("training.method", f"The MLX backend knows SFT only, not {training.method}.")
    if training.mode is Mode.FULL:
        yield _refuse("training.mode", "The MLX backend trains LoRA adapters only.")
    if training.precision is Precision.FP8:
        yield _refuse("training.precision", "The MLX backend has no fp8.")
    if training.multi_run is not None:
        yield _refuse("training.multi_run", "The MLX backend has no multi-run.")
    if case.lora.use_dora:
        yield _refuse("lora.use_dora", "The MLX backend has no DoRA.")
    if training.load_in_4bit:
        yield _refuse("training.load_in_4bit", "The MLX backend trains on whole weights only.")
    if training.optimizer in EIGHT_BIT:
        yield _refuse("training.optimizer", "The MLX backend has no 8-bit optimizers.")
    if training.torch_compile:
        yield _refuse("training.torch_compile", "The MLX backend has nothing of torch to compile.")


def _hardware(case: Case) -> Iterator[Finding]:
    training, tier = case.training, case.tier
    if tier is None:
        return
    if training.backend is Backend.CUDA and not tier.is_gpu:
        yield _refuse(
            "training.backend", f"The CUDA backend needs a GPU; tier {tier.tier} has none."
        )
    if training.backend is Backend.CPU and tier.is_gpu:
        yield _refuse(
            "training.backend", f"The CPU backend would leave the GPU of tier {tier.tier} idle."
        )
    match training.precision:
        case Precision.BF16 if tier.is_gpu and "bf16" not in tier.capabilities:
            yield _refuse("training.precision", f"{tier.hardware} has no bf16; use fp16 or auto.")
        case Precision.FP16 if not tier.is_gpu:
            yield _refuse("training.precision", "fp16 needs a GPU; use fp32 or auto.")
        case Precision.FP8:
            # Hopper could; no backend trains in it.
            yield _refuse("training.precision", "No node trains in fp8; use auto or bf16.")
        case _:
            pass
    if training.torch_compile and "fp8" not in tier.capabilities:
        fault = Fault(
            FaultCode.CONFIG_INVALID_SETTING,
            f"torch_compile is known to fail on {tier.hardware}; the run is safer without it.",
            remedy="Leave torch_compile out, or take the tier h100.",
            field="training.torch_compile",
        )
        yield info(fault, "training.torch_compile")


def _temperature(case: Case) -> Iterator[Finding]:
    limits = case.training.temperature
    assert limits is not None
    steps = (limits.warn_celsius, limits.pause_celsius, limits.abort_celsius)
    known = [step for step in steps if step is not None]
    if known != sorted(known):
        yield _refuse(
            "training.temperature",
            "The temperatures must rise: warn, then pause, then abort.",
        )


def _multi_run(case: Case) -> Iterator[Finding]:
    """Slices stay within the training pool, so that they never contain held-out rows (002-17)."""
    training = case.training
    if training.multi_run is None:
        return
    if training.method is not Method.SFT:
        yield _refuse("training.multi_run", f"Multi-run knows SFT only, not {training.method}.")
    if training.validation is not None and training.validation.every_steps is not None:
        fault = Fault(
            FaultCode.CONFIG_INVALID_SETTING,
            "A multi-run validates after each of its runs; training.validation.every_steps is not "
            "used.",
            remedy="Leave training.validation.every_steps out.",
            field="training.validation.every_steps",
        )
        yield info(fault, "training.validation.every_steps")
    gated = training.multi_run.eval_maximum_regression is not None
    validates = holdout_ratio(training) > 0 or bool(
        training.validation and training.validation.dataset
    )
    if gated and not validates:
        yield _refuse(
            "training.multi_run.eval_maximum_regression",
            "The limit of the held-out loss needs held-out rows: set validate_every_run, or a "
            "validation with a holdout or a dataset.",
        )
    datasets = case.facts.found_datasets()
    if not datasets or len(datasets) != len(case.spec.datasets):
        return
    try:
        check_samples_per_run(
            samples_per_run=training.multi_run.samples_per_run,
            row_count=sum(dataset.row_count for dataset in datasets),
            ratio=holdout_ratio(training),
        )
    except Fault as fault:
        yield red(fault, "training.multi_run.samples_per_run")


def _refuse(field: str, message: str) -> Finding:
    return red(Fault(FaultCode.CONFIG_INVALID_SETTING, message, field=field), field)
