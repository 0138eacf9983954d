"""Every number of a spec within its range; the ranges are those of the contract."""

from collections.abc import Iterator
from dataclasses import dataclass

from lexicon.faults import Fault, FaultCode
from modelspec.artifact import check_quantization
from modelspec.lora import RANK_MAX
from validator.domain.case import Case
from validator.domain.finding import CheckOutcome, Finding, outcome, red

MAX_TIMEOUT_SECONDS = 30 * 24 * 3600
ENDLESS = float("inf")
# Beyond it a float does not represent every whole number.
WHOLE_MAX = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An interval; an open end is not part of it. NaN is in none."""

    low: float
    high: float
    low_open: bool = False

    def holds(self, value: float) -> bool:
        above = self.low < value if self.low_open else self.low <= value
        return above and value <= self.high

    def __str__(self) -> str:
        low, high = in_words(self.low), in_words(self.high)
        if self.high == ENDLESS:
            return f"more than {low}" if self.low_open else f"{low} or more"
        return f"more than {low}, at most {high}" if self.low_open else f"{low} to {high}"


def in_words(number: float) -> str:
    """A number as a user would type it: whole ones with all their digits."""
    if isinstance(number, int) or (number.is_integer() and abs(number) <= WHOLE_MAX):
        return str(int(number))
    return f"{number:g}"


LARGEST_SEED = (1 << 63) - 1

TRAINING = {
    "epochs": Range(low=1, high=1000),
    "max_steps": Range(low=0, high=1_000_000),
    "micro_batch_size": Range(low=1, high=1024),
    "accumulation_steps": Range(low=1, high=1024),
    "learning_rate": Range(low=0, high=1, low_open=True),
    "warmup_ratio": Range(low=0, high=0.5),
    "weight_decay": Range(low=0, high=1),
    "max_grad_norm": Range(low=0, high=1e6),
    "seed": Range(low=0, high=LARGEST_SEED),
    "checkpoint_every_steps": Range(low=0, high=1_000_000),
    "checkpoint_keep_count": Range(low=0, high=100),
}
VALIDATION = {
    "holdout_ratio": Range(low=0, high=0.5),
    "every_steps": Range(low=1, high=1_000_000),
    "early_stop_patience": Range(low=0, high=1000),
    "early_stop_min_delta": Range(low=0, high=1e6),
}
PREFERENCE = {
    "beta": Range(low=0, high=1e6, low_open=True),
    "simpo_gamma": Range(low=0, high=1e6),
    "desirable_weight": Range(low=0, high=1e6, low_open=True),
    "undesirable_weight": Range(low=0, high=1e6, low_open=True),
}
MULTI_RUN = {
    "run_count": Range(low=2, high=100),
    "samples_per_run": Range(low=1, high=1e9),
    "drift_minimum_cosine": Range(low=-1, high=1),
    "eval_maximum_regression": Range(low=0, high=1e6),
}
TEMPERATURE = {
    "warn_celsius": Range(low=30, high=120),
    "pause_celsius": Range(low=30, high=120),
    "abort_celsius": Range(low=30, high=120),
}
RANK = Range(low=1, high=RANK_MAX)
LORA = {
    "alpha": Range(low=0, high=1e6, low_open=True),
    "dropout": Range(low=0, high=0.9),
}
BUDGET = {
    "max_amount_micros": Range(low=0, high=1e15),
    "timeout_seconds": Range(low=0, high=MAX_TIMEOUT_SECONDS, low_open=True),
}
LEAST_SEQUENCE_TOKENS = 16


def check_ranges(case: Case) -> CheckOutcome:
    """All numbers, each by its own name."""
    return outcome("all values are in range", _findings(case))


def ranges_hold(case: Case) -> bool:
    """Whether estimates can be made with the numbers."""
    return not any(_findings(case))


def _findings(case: Case) -> Iterator[Finding]:
    training = case.training
    yield from _outside(training, TRAINING, "training")
    yield from _outside(training.validation, VALIDATION, "training.validation")
    yield from _outside(training.preference, PREFERENCE, "training.preference")
    yield from _outside(training.multi_run, MULTI_RUN, "training.multi_run")
    yield from _outside(training.temperature, TEMPERATURE, "training.temperature")
    yield from _rank(case)
    yield from _outside(case.lora, LORA, "lora")
    yield from _outside(case.spec.budget, BUDGET, "budget")
    yield from _sequence(case)
    yield from _quantizations(case)


def _outside(values: object, ranges: dict[str, Range], part: str) -> Iterator[Finding]:
    if values is None:
        return
    for name, bounds in ranges.items():
        value = getattr(values, name)
        if value is not None and not bounds.holds(value):
            yield _out_of_range(f"{part}.{name}", value, bounds)


def _rank(case: Case) -> Iterator[Finding]:
    rank = case.lora.rank
    assert rank is not None
    if not RANK.holds(rank):
        fault = Fault(
            FaultCode.CONFIG_RANK_OUT_OF_RANGE,
            f"lora.rank is {rank}; it must be {RANK}.",
            rank=rank,
            minimum=RANK.low,
            maximum=RANK.high,
        )
        yield red(fault, "lora.rank")


def _sequence(case: Case) -> Iterator[Finding]:
    tokens = case.training.max_sequence_tokens
    assert tokens is not None
    highest = ENDLESS if case.shape is None else case.shape.context_tokens
    bounds = Range(low=min(LEAST_SEQUENCE_TOKENS, highest), high=highest)
    if not bounds.holds(tokens):
        yield _out_of_range("training.max_sequence_tokens", tokens, bounds)


def _quantizations(case: Case) -> Iterator[Finding]:
    for name in case.export.quantizations:
        try:
            check_quantization(name)
        except Fault as fault:
            yield red(fault, "export.quantizations")


def _out_of_range(field: str, value: float, bounds: Range) -> Finding:
    fault = Fault(
        FaultCode.CONFIG_VALUE_OUT_OF_RANGE,
        f"{field} is {in_words(value)}; it must be {bounds}.",
        field=field,
        value=value,
        range=str(bounds),
    )
    return red(fault, field)
