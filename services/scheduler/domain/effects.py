"""The effects of transitions: each does one thing to a run and reports it.

A draft is a decision in the making; the effects of a transition work on it in the order of the
table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from lexicon.faults import FaultCode
from scheduler.domain import clock, failures, limits, tasks
from scheduler.domain.events import (
    ActivityChanged,
    ArtifactStored,
    Body,
    CheckpointCommitted,
    ClockChange,
    ClockChanged,
    Ended,
    Event,
    Progressed,
    SamplesRecorded,
    StateChanged,
    Warned,
)
from scheduler.domain.run import (
    TERMINAL,
    Checkpoint,
    Finish,
    FinishCause,
    Metrics,
    Run,
    State,
    check,
)
from scheduler.domain.signals import (
    ActivityReported,
    CheckpointReported,
    ExportCompleted,
    MetricsReported,
    PauseReported,
    ReportBody,
    SamplesReported,
    Signal,
    StageReached,
    TrainingBegan,
    TrainingCompleted,
    WarningReported,
)
from scheduler.domain.tasks import RunFault, Task, TaskKind, TaskLeased
from scheduler.domain.transitions import Effect, Transition, Trigger, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A run before and after, and everything that is written with it in one transaction.

    Attributes:
        before: None for a new run.
        events: numbered on from the sequence before, without a gap.
        tasks: tasks that changed, by kind, each with its newest lease.
        metrics: figures of single steps, for the plot of the model card.
        superseded: checkpoints that no attempt will resume from any more.
    """

    before: Run | None
    after: Run
    events: tuple[Event, ...] = ()
    tasks: Mapping[str, Task] = field(default_factory=dict)
    metrics: tuple[Metrics, ...] = ()
    superseded: tuple[Checkpoint, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to write."""
        return self.before is None or self.after != self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One trigger with what its effects need."""

    trigger: Trigger
    at: datetime
    signal: Signal | ReportBody | None = None
    fault: RunFault | None = None
    cause: FinishCause | None = None


@dataclass(slots=True, kw_only=True)
class Draft:
    """A decision in the making."""

    run: Run
    now: datetime
    events: list[Event] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    metrics: list[Metrics] = field(default_factory=list)
    superseded: list[Checkpoint] = field(default_factory=list)
    before: Run = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.run

    def apply(self, step: Step) -> None:
        """Makes the transition of a step.

        Raises:
            Fault: RUN_TRANSITION_ILLEGAL when the table has none.
        """
        self.make(step, require(step.trigger, self.run.state, self.run.stage))

    def make(self, step: Step, row: Transition) -> None:
        for effect in row.effects:
            _EFFECTS[effect](self, step, row)

    def emit(self, body: Body, *, at: datetime) -> None:
        run = self.run
        self.run = replace(run, sequence=run.sequence + 1)
        event = Event(
            sequence=self.run.sequence,
            time=at,
            attempt=run.attempt,
            state=run.state,
            stage=run.stage,
            body=body,
        )
        self.events.append(event)

    def put_task(self, task: Task) -> None:
        self.run = replace(self.run, task=task)
        self.tasks[task.kind] = task

    def decision(self) -> Decision:
        after = self.run
        if after != self.before:
            after = replace(after, update_time=self.now)
            check(after)
        assert not (self.before.has_ended and self.events), self.before.name
        return Decision(
            before=self.before,
            after=after,
            events=tuple(self.events),
            tasks=self.tasks,
            metrics=tuple(self.metrics),
            superseded=tuple(self.superseded),
        )


def _open_lease(draft: Draft, step: Step, row: Transition) -> None:
    signal, run = step.signal, draft.run
    assert isinstance(signal, TaskLeased)
    trains = run.task.kind == TaskKind.TRAIN
    from_step = run.checkpoint.step if run.checkpoint and trains else 0
    draft.run = replace(
        run,
        attempt=run.task.failures + 1 if trains else run.attempt,
        clock=run.clock.open(step.at),
    )
    draft.put_task(tasks.lease(run.task, signal, step.at, resumed_from_step=from_step))


def _close_lease(draft: Draft, step: Step, row: Transition) -> None:
    """The node is free; the task has ended or waits for another, as the row says."""
    run = draft.run
    assert row.ending is not None
    if run.lease is not None:
        draft.run = replace(run, clock=run.clock.close(step.at), activity=None)
    draft.put_task(tasks.close(run.task, row.ending, step.at, fault=step.fault))


def _queue_export(draft: Draft, step: Step, row: Transition) -> None:
    epoch = draft.run.fencing_epoch
    draft.put_task(tasks.queued(TaskKind.EXPORT, step.at, fencing_epoch=epoch))


def _move(draft: Draft, step: Step, row: Transition) -> None:
    run = draft.run
    stage = step.signal.stage if isinstance(step.signal, StageReached) else row.stage
    target = row.target or run.state
    fault = step.fault if target is State.FAILED else None
    draft.run = replace(
        run,
        state=target,
        stage=stage or run.stage,
        activity=None,
        fault=fault,
        end_time=step.at if target in TERMINAL else None,
        cancel_request_time=step.at if target is State.CANCELLED else run.cancel_request_time,
    )
    # That of the lease under way, or of the one that has just ended.
    lease = run.lease or draft.before.lease
    node = lease.node if lease else ""
    body = StateChanged(
        from_state=run.state,
        from_stage=run.stage,
        node=node,
        reason=row.reason,
        fault=step.fault,
    )
    draft.emit(body, at=step.at)


def _drop_checkpoint(draft: Draft, step: Step, row: Transition) -> None:
    """An attempt that begins before the checkpoint could not use it: all steps are done again."""
    run = draft.run
    assert isinstance(step.signal, TrainingBegan)
    if run.checkpoint is None or step.signal.from_step >= run.checkpoint.step:
        return
    draft.superseded.append(run.checkpoint)
    draft.run = replace(run, checkpoint=None, clock=run.clock.forget(step.at))
    reason = "The checkpoint could not be used; training starts over."
    body = ClockChanged(change=ClockChange.VOIDED, reason=reason, void_from=run.start_time)
    draft.emit(body, at=step.at)


def _start_clock(draft: Draft, step: Step, row: Transition) -> None:
    run = draft.run
    assert run.lease is not None
    assert isinstance(step.signal, TrainingBegan)
    # The figures of an earlier attempt say nothing about this one.
    draft.run = replace(
        run,
        clock=run.clock.start(step.at),
        start_time=run.start_time or step.at,
        metrics=None,
        progress_time=draft.now,
    )
    from_step = max(step.signal.from_step, 0)
    draft.put_task(tasks.begun(run.task, at=step.at, from_step=from_step))
    _report_clock(draft, ClockChange.STARTED, step.at, reason=row.reason)


def _pause_clock(draft: Draft, step: Step, row: Transition) -> None:
    assert isinstance(step.signal, PauseReported)
    draft.run = replace(draft.run, clock=draft.run.clock.pause(step.at))
    _report_clock(draft, ClockChange.PAUSED, step.at, reason=step.signal.reason)


def _resume_clock(draft: Draft, step: Step, row: Transition) -> None:
    assert isinstance(step.signal, PauseReported)
    draft.run = replace(draft.run, clock=draft.run.clock.resume(step.at))
    _report_clock(draft, ClockChange.RESUMED, step.at, reason=step.signal.reason)


def _stop_clock(draft: Draft, step: Step, row: Transition) -> None:
    """Stops a clock that runs or is paused; one that is stopped stays as it is."""
    if not draft.run.clock.ticks:
        return
    draft.run = replace(draft.run, clock=draft.run.clock.stop(step.at))
    reason = row.reason or "The budget is spent; the rest is free."
    _report_clock(draft, ClockChange.STOPPED, step.at, reason=reason)


def _void_clock(draft: Draft, step: Step, row: Transition) -> None:
    """Takes back what the attempt did after its last checkpoint, for the next one does it again."""
    run = draft.run
    if run.clock.started_time is None:
        return
    point = run.checkpoint
    kept = point.time if point and point.fencing_epoch == run.fencing_epoch else None
    draft.run = replace(run, clock=run.clock.void(step.at, keep_until=kept))
    body = ClockChanged(change=ClockChange.VOIDED, reason=row.reason, void_from=kept)
    draft.emit(body, at=step.at)


def _report_clock(draft: Draft, change: ClockChange, at: datetime, *, reason: str) -> None:
    draft.emit(ClockChanged(change=change, reason=reason), at=at)


def _record_metrics(draft: Draft, step: Step, row: Transition) -> None:
    """Keeps the figures, and reports them unless that was done a moment ago."""
    assert isinstance(step.signal, MetricsReported)
    is_first = draft.run.metrics is None
    draft.run = replace(draft.run, metrics=step.signal.metrics, activity=None)
    draft.metrics.append(step.signal.metrics)
    if is_first or limits.is_progress_due(draft.run, draft.now):
        _report_progress(draft, step, row)


def _record_samples(draft: Draft, step: Step, row: Transition) -> None:
    """Keeps the samples in the place of earlier ones, and reports them."""
    assert isinstance(step.signal, SamplesReported)
    draft.run = replace(draft.run, samples=step.signal.samples)
    draft.emit(SamplesRecorded(samples=step.signal.samples), at=step.at)


def _report_activity(draft: Draft, step: Step, row: Transition) -> None:
    assert isinstance(step.signal, ActivityReported)
    draft.run = replace(draft.run, activity=step.signal.activity)
    draft.emit(ActivityChanged(activity=step.signal.activity), at=step.at)


def _record_result(draft: Draft, step: Step, row: Transition) -> None:
    signal, run = step.signal, draft.run
    if isinstance(signal, ExportCompleted):
        draft.run = replace(run, proofs=signal.proofs)
        return
    assert isinstance(signal, TrainingCompleted)
    draft.run = replace(
        run,
        metrics=signal.metrics or run.metrics,
        samples=signal.samples,
        adapter=signal.adapter,
    )
    draft.emit(SamplesRecorded(samples=signal.samples), at=step.at)


def _store_artifacts(draft: Draft, step: Step, row: Transition) -> None:
    assert isinstance(step.signal, TrainingCompleted | ExportCompleted)
    for file in step.signal.files:
        draft.run = replace(draft.run, artifact=file.artifact)
        draft.emit(ArtifactStored(file=file), at=step.at)


def _report_progress(draft: Draft, step: Step, row: Transition) -> None:
    run = replace(draft.run, progress_time=draft.now)
    draft.run = run
    body = Progressed(
        metrics=run.metrics,
        reading=reading(run, draft.now),
        cost_micros=limits.cost_now(run, draft.now),
    )
    draft.emit(body, at=draft.now)


def _commit_checkpoint(draft: Draft, step: Step, row: Transition) -> None:
    signal, run = step.signal, draft.run
    assert isinstance(signal, CheckpointReported)
    # What was trained while it was on its way is done again after a loss, and must be free then.
    reached = max(step.at - signal.storing, run.clock.started_time or step.at)
    point = Checkpoint(
        step=signal.step, time=reached, fencing_epoch=run.fencing_epoch, files=signal.files
    )
    if run.checkpoint is not None:
        draft.superseded.append(run.checkpoint)
    draft.run = replace(run, checkpoint=point)
    draft.emit(CheckpointCommitted(step=signal.step), at=step.at)


def _warn(draft: Draft, step: Step, row: Transition) -> None:
    assert isinstance(step.signal, WarningReported)
    _report_warning(draft, step.at, code=step.signal.code, message=step.signal.message)


def _warn_node_lost(draft: Draft, step: Step, row: Transition) -> None:
    code = FaultCode.RUNTIME_WORKER_LOST
    _report_warning(draft, step.at, code=code, message=failures.NODE_LOST)


def _warn_retrying(draft: Draft, step: Step, row: Transition) -> None:
    code = step.fault.code if step.fault else FaultCode.RUNTIME_WORKER_LOST
    _report_warning(draft, step.at, code=code, message=failures.RETRYING)


def _warn_limit(draft: Draft, step: Step, row: Transition) -> None:
    limit = "timeout" if step.cause is FinishCause.TIMEOUT else "budget"
    text = f"The {limit} of the run is reached; training ends now and the work is kept."
    _report_warning(draft, step.at, code=FaultCode.RUN_TIMEOUT, message=text)


def _report_warning(draft: Draft, at: datetime, *, code: str, message: str) -> None:
    draft.run = replace(draft.run, warning_count=draft.run.warning_count + 1)
    draft.emit(Warned(code=code, message=message), at=at)


def _request_finish(draft: Draft, step: Step, row: Transition) -> None:
    assert step.cause is not None
    if draft.run.finish is None:
        draft.run = replace(draft.run, finish=Finish(cause=step.cause, time=step.at))


def _end(draft: Draft, step: Step, row: Transition) -> None:
    run = draft.run
    body = Ended(
        state=run.state,
        fault=run.fault,
        reading=reading(run, step.at),
        rate_micros_per_minute=run.terms.rate_micros_per_minute,
        refundable=failures.is_refundable(run.terms, run.fault),
    )
    draft.emit(body, at=step.at)


def reading(run: Run, now: datetime) -> clock.Reading:
    """The four clocks of a run."""
    return clock.read(run.clock, submit_time=run.submit_time, end_time=run.end_time, now=now)


_EFFECTS: Final[Mapping[Effect, Callable[[Draft, Step, Transition], None]]] = {
    Effect.OPEN_LEASE: _open_lease,
    Effect.CLOSE_LEASE: _close_lease,
    Effect.QUEUE_EXPORT: _queue_export,
    Effect.MOVE: _move,
    Effect.DROP_CHECKPOINT: _drop_checkpoint,
    Effect.START_CLOCK: _start_clock,
    Effect.PAUSE_CLOCK: _pause_clock,
    Effect.RESUME_CLOCK: _resume_clock,
    Effect.STOP_CLOCK: _stop_clock,
    Effect.VOID_CLOCK: _void_clock,
    Effect.RECORD_METRICS: _record_metrics,
    Effect.RECORD_SAMPLES: _record_samples,
    Effect.RECORD_RESULT: _record_result,
    Effect.STORE_ARTIFACTS: _store_artifacts,
    Effect.REPORT_PROGRESS: _report_progress,
    Effect.REPORT_ACTIVITY: _report_activity,
    Effect.COMMIT_CHECKPOINT: _commit_checkpoint,
    Effect.WARN: _warn,
    Effect.WARN_NODE_LOST: _warn_node_lost,
    Effect.WARN_RETRYING: _warn_retrying,
    Effect.WARN_LIMIT: _warn_limit,
    Effect.REQUEST_FINISH: _request_finish,
    Effect.END: _end,
}
