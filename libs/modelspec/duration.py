"""How long a run trains: steps, arithmetic, overheads; and the minutes it may be charged."""

import math
from dataclasses import dataclass

from modelspec.catalog import Tier
from modelspec.lora import LoraSpec, adapter_parameter_count
from modelspec.shape import ModelShape

# A run may take this much longer than its estimate before it is stopped.
BUFFER = 1.3
# English text in a large vocabulary; a smaller one needs more tokens, hence the low figure.
CHARACTERS_PER_TOKEN = 3.0
# Role marks and line breaks that a chat template adds to an example.
TEMPLATE_TOKENS = 16
SECONDS_PER_MINUTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much is trained.

    Attributes:
        row_count: examples of one pass, those held out already taken away.
        tokens_per_row: mean tokens of an example, cut to the longest sequence.
    """

    row_count: int
    tokens_per_row: float
    micro_batch_size: int
    accumulation_steps: int
    epochs: int
    max_steps: int
    gradient_checkpointing: bool

    @property
    def step_count(self) -> int:
        """Optimizer steps: `max_steps` when it is set, otherwise all passes; never 0."""
        if self.max_steps > 0:
            return self.max_steps
        batch = self.micro_batch_size * self.accumulation_steps
        return max(1, self.epochs * math.ceil(self.row_count / batch))


def estimate_tokens_per_row(*, character_count: int, row_count: int, sequence_tokens: int) -> float:
    """Mean tokens of an example from the characters of a file, cut to the longest sequence."""
    mean = character_count / max(1, row_count) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    return min(float(sequence_tokens), mean)


def estimate_seconds(shape: ModelShape, lora: LoraSpec, workload: Workload, tier: Tier) -> float:
    """Time from the first step to the stored adapter.

    A token costs 2 operations a parameter forward and 2 backward through the frozen weights (no
    gradient of their own), 2 more when activations are computed again, and 6 for the adapter.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
    """
    passes = 6 if workload.gradient_checkpointing else 4
    flops_per_token = passes * shape.active_parameter_count() + 6 * adapter_parameter_count(
        lora, shape
    )
    batch = workload.micro_batch_size * workload.accumulation_steps
    rows_per_step = min(batch, max(1, workload.row_count))
    tokens = workload.step_count * rows_per_step * workload.tokens_per_row
    arithmetic = tokens * flops_per_token / tier.flops_per_second
    overhead = workload.step_count * workload.accumulation_steps * tier.step_seconds
    return arithmetic + overhead + tier.fixed_seconds


def timeout_seconds(estimated_seconds: float) -> int:
    """Longest time before a run is stopped: the estimate with its buffer, in whole seconds."""
    return math.ceil(estimated_seconds * BUFFER)


def expected_minutes(seconds: float) -> int:
    """Whole minutes that a run of this length is charged: rounded down."""
    return math.floor(seconds / SECONDS_PER_MINUTE)


def maximum_minutes(seconds: float) -> int:
    """Whole minutes that are held for a run that is stopped after `seconds`: at least one."""
    return max(1, math.ceil(seconds / SECONDS_PER_MINUTE))
