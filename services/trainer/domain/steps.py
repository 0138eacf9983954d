"""Numbers of a step: its learning rate, and the time that is left after it."""

import math
from collections import deque
from statistics import median
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


# Before this many timed steps there is no estimate; the first steps of a run are not typical.
STEPS_BEFORE_ESTIMATE = 5
STEPS_REMEMBERED = 50


class StepTimer:
    """Durations of the latest steps, in seconds."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._timed_count = 0

    def add(self, seconds: float) -> None:
        """Note the duration of a step. The first step of a process pays for warm-ups: left out."""
        self._timed_count += 1
        if self._timed_count > 1:
            self._durations.append(seconds)

    def remaining_seconds(self, *, steps_left: int) -> float | None:
        """Seconds until the last step is done; None before enough steps were timed."""
        if self._timed_count < STEPS_BEFORE_ESTIMATE:
            return None
        return median(self._durations) * steps_left
