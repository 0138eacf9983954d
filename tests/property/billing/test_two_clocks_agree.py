"""The bill that users see live and the bill that they pay are computed twice, and must be equal.

The scheduler folds the clock's changes into a running clock; billing lays the events of the whole
run out as intervals. Neither knows the other, so that a mistake in one shows as a difference.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from billing.domain.timeline import Clock, Ending, Fact, Phase, RunEnd, timeline
from scheduler.domain.clock import Clock as RunningClock
from tests.support.money import START

MOVES = ("start", "pause", "resume", "stop", "void", "void_from", "wait")
STEPS = st.lists(
    st.tuples(st.sampled_from(MOVES), st.floats(min_value=0, max_value=5000)), max_size=30
)


@dataclass(kw_only=True)
class Life:
    """A run whose clock moves as a scheduler moves it: only where the move is legal."""

    clock: RunningClock = field(default_factory=RunningClock)
    facts: list[Fact] = field(default_factory=list)
    now: datetime = START
    attempt: int = 0
    checkpoint: datetime | None = None

    def step(self, move: str) -> None:
        running = self.clock.running_since is not None
        match move:
            case "start" if not self.clock.ticks:
                self._lease()
                self.clock = self.clock.start(self.now)
                self.checkpoint = None
                self._tell(Phase.TRAINING, Clock.STARTED)
            case "pause" if running:
                self.clock = self.clock.pause(self.now)
                self._tell(Phase.TRAINING, Clock.PAUSED)
            case "resume" if self.clock.paused:
                self.clock = self.clock.resume(self.now)
                self._tell(Phase.TRAINING, Clock.RESUMED)
            case "stop" if self.clock.ticks:
                self.clock = self.clock.stop(self.now)
                self._tell(Phase.EXPORTING, Clock.STOPPED)
            case "void" | "void_from" if self.clock.ticks:
                kept = self.checkpoint if move == "void_from" else None
                self.clock = self.clock.void(self.now, keep_until=kept)
                self._tell(Phase.RETRYING, Clock.VOIDED, void_from=kept)
            case "wait" if running:
                self.checkpoint = self.now
            case _:
                return

    def _lease(self) -> None:
        """A new attempt: the node of the one before is free, another one takes the run."""
        if self.clock.active_since is not None:
            self.clock = self.clock.close(self.now)
        self.clock = self.clock.open(self.now)
        self.attempt += 1

    def _tell(
        self, phase: Phase, clock: Clock | None, *, void_from: datetime | None = None
    ) -> None:
        self.facts.append(
            Fact(
                sequence=len(self.facts) + 1,
                event_time=self.now,
                attempt=self.attempt,
                phase=phase,
                clock=clock,
                void_from=void_from,
            )
        )

    def end(self) -> None:
        if self.clock.ticks:
            self.step("stop")
        outcome = RunEnd(
            ending=Ending.COMPLETED, refundable=False, fault_code="", fault_refundable=False
        )
        self.facts.append(
            Fact(
                sequence=len(self.facts) + 1,
                event_time=self.now,
                attempt=self.attempt,
                phase=Phase.DONE,
                outcome=outcome,
            )
        )


@given(steps=STEPS)
def test_scheduler_and_billing_count_the_same_time(steps: list[tuple[str, float]]) -> None:
    """A3, A6, A7: the charge equals the cost that was shown, whatever the run went through."""
    life = Life()
    for move, seconds in steps:
        life.step(move)
        life.now += timedelta(seconds=seconds)
    life.end()
    paid = timedelta(microseconds=timeline(life.facts).billable_micros)
    assert paid == life.clock.billable(life.now)
