"""Time left, estimated from the durations of the latest steps."""

from collections import deque
from statistics import median

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
