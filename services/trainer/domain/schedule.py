"""The learning rate of a step, as a pure function of the step."""

import math
from typing import assert_never

from modelspec.recipe import Schedule


def learning_rate(
    step: int, *, steps: int, lr_peak: float, warmup_ratio: float, schedule: Schedule
) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`.

    It climbs in a line over the first ceil(warmup_ratio * steps) steps, reaching `lr_peak` on the
    last of them, and then follows the schedule towards 0; a constant one stays.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return lr_peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match schedule:
        case Schedule.COSINE:
            return lr_peak * 0.5 * (1 + math.cos(math.pi * done))
        case Schedule.LINEAR:
            return lr_peak * (1 - done)
        case Schedule.CONSTANT:
            return lr_peak
        case _:
            assert_never(schedule)
