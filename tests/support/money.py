"""Builders for tests about money: a run told as a story of what happened when."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from billing.domain.settlement import Hold
from billing.domain.timeline import Clock, Ending, Fact, Phase, RunEnd

START = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
RUN = "projects/acme/runs/run-1"

COMPLETED = RunEnd(ending=Ending.COMPLETED, refundable=True, fault_code="", fault_refundable=False)
CANCELLED = RunEnd(ending=Ending.CANCELLED, refundable=True, fault_code="", fault_refundable=False)


def failed(
    *, refundable: bool = True, code: str = "RUNTIME_GPU_OOM", code_refundable: bool = True
) -> RunEnd:
    """A failure; `refundable` is the run's verdict, `code_refundable` that of the code alone."""
    return RunEnd(
        ending=Ending.FAILED,
        refundable=refundable,
        fault_code=code,
        fault_refundable=code_refundable,
    )


def a_hold(**changes: object) -> Hold:
    """A reservation of 60 minutes at 0.05 credits."""
    hold = Hold(
        run=RUN,
        project="acme",
        amount_micros=60 * 50_000,
        rate_micros_per_minute=50_000,
        maximum_minutes=60,
        gpu_tier="t4",
    )
    return replace(hold, **changes)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Story:
    """A run as it is lived: `at` moves the time, the other methods say what happens then."""

    facts: list[Fact] = field(default_factory=list)
    time: datetime = START
    attempt: int = 0
    phase: Phase = Phase.QUEUED

    def at(self, seconds: float) -> "Story":
        self.time = START + timedelta(seconds=seconds)
        return self

    def phase_is(self, phase: Phase, *, attempt: int | None = None) -> "Story":
        self.phase = phase
        self.attempt = self.attempt if attempt is None else attempt
        return self._tell()

    def clock(self, change: Clock, *, void_from: float | None = None, reason: str = "") -> "Story":
        since = None if void_from is None else START + timedelta(seconds=void_from)
        return self._tell(clock=change, void_from=since, reason=reason)

    def ends(self, outcome: RunEnd) -> "Story":
        self.phase = Phase.DONE
        return self._tell(outcome=outcome)

    def _tell(
        self,
        *,
        clock: Clock | None = None,
        void_from: datetime | None = None,
        reason: str = "",
        outcome: RunEnd | None = None,
    ) -> "Story":
        self.facts.append(
            Fact(
                sequence=len(self.facts) + 1,
                event_time=self.time,
                attempt=self.attempt,
                phase=self.phase,
                clock=clock,
                reason=reason,
                void_from=void_from,
                outcome=outcome,
            )
        )
        return self


def a_run() -> Story:
    """A run that was submitted at second 0."""
    return Story().phase_is(Phase.QUEUED)


def a_training_run(*, start: float = 100) -> Story:
    """A run that waited, was prepared and whose clock starts at second `start`."""
    story = a_run().at(10).phase_is(Phase.PROVISIONING, attempt=1)
    story = story.at(20).phase_is(Phase.DATA_DOWNLOAD).at(30).phase_is(Phase.INITIALIZATION)
    return story.at(start).phase_is(Phase.TRAINING).clock(Clock.STARTED)
