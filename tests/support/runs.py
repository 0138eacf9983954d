"""The story of a run for tests: signals one after another on a fake clock, and what came of it."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from lexicon.faults import FaultCode, Stage
from scheduler.domain import tasks
from scheduler.domain.activity import Activity
from scheduler.domain.decision import decide, submit
from scheduler.domain.effects import Decision
from scheduler.domain.events import Body, ClockChanged, Event
from scheduler.domain.run import Metrics, Run, State, StoredFile, Terms
from scheduler.domain.signals import (
    ActivityReported,
    CancelRequested,
    CheckpointReported,
    ExportCompleted,
    Heartbeat,
    LeaseLost,
    Loss,
    MetricsReported,
    PauseReported,
    Report,
    ReportBody,
    SamplesReported,
    Signal,
    StageReached,
    StopRequested,
    Submitted,
    TaskFailed,
    TaskReleased,
    Tick,
    TrainingBegan,
    TrainingCompleted,
    WarningReported,
)
from scheduler.domain.tasks import RunFault, TaskKind, TaskLeased

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAME = "projects/acme/runs/run-1"
LEASE = timedelta(seconds=15)

TERMS = Terms(
    tier="cpu",
    rate_micros_per_minute=10_000,
    hold_micros=600_000,
    budget_micros=600_000,
    timeout=timedelta(hours=2),
    vouched=True,
    gguf=True,
)


def a_run(terms: Terms = TERMS) -> Run:
    """A run that was submitted at noon."""
    return Run(
        name=NAME,
        version=1,
        state=State.QUEUED,
        stage=Stage.QUEUED,
        terms=terms,
        task=tasks.queued(TaskKind.TRAIN, NOON),
        submit_time=NOON,
        update_time=NOON,
    )


def some_metrics(step: int, *, total_steps: int = 100, loss: float = 1.0) -> Metrics:
    """Figures of a step."""
    return Metrics(step=step, total_steps=total_steps, loss=loss, document=b"")


@dataclass(slots=True)
class Story:
    """A run that lives through signals.

    Attributes:
        now: the fake clock; `after` moves it.
        events: all events so far.
    """

    terms: Terms = TERMS
    now: datetime = NOON
    run: Run = field(init=False)
    events: list[Event] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    leases: int = 0

    def __post_init__(self) -> None:
        self.run = a_run(self.terms)
        self._keep(submit(self.run, Submitted(document=b"")))

    def after(self, *, seconds: float = 0.0, minutes: float = 0.0) -> Self:
        self.now += timedelta(seconds=seconds, minutes=minutes)
        return self

    def signal(self, signal: Signal) -> Self:
        self._keep(decide(self.run, signal, self.now))
        return self

    def leased(self, *, node: str = "nodes/n1") -> Self:
        self.leases += 1
        return self.signal(
            TaskLeased(
                lease_id=f"lease-{self.leases}",
                node=node,
                incarnation="i1",
                lease=LEASE,
            )
        )

    def reported(self, *bodies: ReportBody, age_seconds: float = 0.0) -> Self:
        held = self.run.lease
        first = held.report_number + 1 if held else 1
        age = timedelta(seconds=age_seconds)
        reports = tuple(
            Report(number=number, age=age, body=body) for number, body in enumerate(bodies, first)
        )
        return self.signal(
            Heartbeat(fencing_epoch=self.run.fencing_epoch, lease=LEASE, reports=reports)
        )

    def stage(self, stage: Stage) -> Self:
        return self.reported(StageReached(stage=stage))

    def began(self, *, from_step: int = 0, age_seconds: float = 0.0) -> Self:
        return self.reported(TrainingBegan(from_step=from_step), age_seconds=age_seconds)

    def training(self) -> Self:
        """Leased and in its first step."""
        return self.leased().began()

    def step(self, step: int) -> Self:
        return self.reported(MetricsReported(metrics=some_metrics(step)))

    def warned(self, message: str) -> Self:
        return self.reported(WarningReported(code="MODEL_CHAT_TEMPLATE_MISSING", message=message))

    def checkpoint(self, step: int, *, storing_seconds: float = 0.0) -> Self:
        storing = timedelta(seconds=storing_seconds)
        return self.reported(CheckpointReported(step=step, files=b"", storing=storing))

    def sampled(self, samples: bytes) -> Self:
        return self.reported(SamplesReported(samples=samples))

    def acting(self, text: str, percent: float | None = None) -> Self:
        return self.reported(ActivityReported(activity=Activity(text=text, percent=percent)))

    def paused(self, *, paused: bool = True) -> Self:
        return self.reported(PauseReported(paused=paused, reason="Waiting for GPU to cool…"))

    def trained(self, *, epoch: int | None = None) -> Self:
        return self.signal(
            TrainingCompleted(
                fencing_epoch=self.run.fencing_epoch if epoch is None else epoch,
                metrics=some_metrics(100),
                samples=b"",
                adapter=b"adapter",
                files=(StoredFile(artifact="projects/acme/artifacts/run-1", document=b""),),
            )
        )

    def exported(self) -> Self:
        return self.signal(
            ExportCompleted(fencing_epoch=self.run.fencing_epoch, proofs=b"", files=())
        )

    def failed(self, code: FaultCode, *, same_oom_count: int = 0) -> Self:
        fault = RunFault(code=code, message="It failed.", remedy="Mend it.", stage=self.run.stage)
        return self.signal(
            TaskFailed(
                fencing_epoch=self.run.fencing_epoch, fault=fault, same_oom_count=same_oom_count
            )
        )

    def lost(self, *, loss: Loss = Loss.EXPIRED) -> Self:
        return self.signal(LeaseLost(fencing_epoch=self.run.fencing_epoch, loss=loss))

    def released(self) -> Self:
        return self.signal(TaskReleased(fencing_epoch=self.run.fencing_epoch))

    def cancelled(self) -> Self:
        return self.signal(CancelRequested())

    def stopped(self) -> Self:
        return self.signal(StopRequested())

    def ticked(self) -> Self:
        return self.signal(Tick())

    def told(self, kind: type[Body]) -> list[Body]:
        """The bodies of one kind of event, in order."""
        return [event.body for event in self.events if isinstance(event.body, kind)]

    def is_in(self, state: State) -> bool:
        return self.run.state is state

    def clock_changes(self) -> list[str]:
        return [
            body.change.value for body in self.told(ClockChanged) if isinstance(body, ClockChanged)
        ]

    def _keep(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self.events += decision.events
        self.run = replace(decision.after, version=decision.after.version + 1)
