"""What must happen when something happens to a run: `decide(run, signal, now) -> Decision`.

Pure: the run, the signal and the time come in, the changed run and its events come out. The
policies name the trigger, the table gives the transition, its effects make the decision.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final, assert_never

from lexicon.faults import Stage
from scheduler.domain import failures, limits, tasks
from scheduler.domain.activity import is_news
from scheduler.domain.effects import Decision, Draft, Step
from scheduler.domain.events import Event, RunSubmitted
from scheduler.domain.run import STAGE_ORDER, FinishCause, Run, State, check
from scheduler.domain.signals import (
    ActivityReported,
    CancelRequested,
    CheckpointReported,
    ExportCompleted,
    Heartbeat,
    LeaseLost,
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
    fresh,
    happened,
)
from scheduler.domain.tasks import Ending, TaskLeased
from scheduler.domain.transitions import Trigger, find

# Warnings that a run keeps; what comes after is dropped.
MAX_WARNINGS: Final = 200


def submit(run: Run, signal: Submitted) -> Decision:
    """The first decision of a run: it is in the queue."""
    body = RunSubmitted(document=signal.document)
    event = Event(
        sequence=1,
        time=run.submit_time,
        attempt=0,
        state=run.state,
        stage=run.stage,
        body=body,
    )
    after = replace(run, sequence=1)
    check(after)
    return Decision(before=None, after=after, events=(event,), tasks={run.task.kind: run.task})


def decide(run: Run, signal: Signal, now: datetime) -> Decision:
    """What a signal does to a run.

    Args:
        now: time of the database; it is taken as not before the run's newest decision.
    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when the state does not allow it; RUN_LEASE_LOST when it
            comes from a lease that is not the newest.
    """
    now = max(now, run.update_time)
    draft = Draft(run=run, now=now)
    match signal:
        case Heartbeat():
            _apply_heartbeat(draft, signal)
        case Tick():
            for trigger in limits.due(run, now):
                _apply_tick(draft, trigger)
        case TaskLeased():
            tasks.lease(run.task, signal, now)
            draft.apply(Step(trigger=Trigger.LEASED, at=now, signal=signal))
        case CancelRequested():
            draft.apply(Step(trigger=Trigger.CANCEL_REQUESTED, at=now, signal=signal))
        case StopRequested():
            step = Step(
                trigger=Trigger.STOP_REQUESTED, at=now, signal=signal, cause=FinishCause.USER
            )
            draft.apply(step)
        case TrainingCompleted() | ExportCompleted() | TaskFailed() | LeaseLost() | TaskReleased():
            tasks.held(run.task, fencing_epoch=signal.fencing_epoch)
            draft.apply(_ending(run, signal, now))
        case _:
            assert_never(signal)
    return draft.decision()


def _apply_heartbeat(draft: Draft, signal: Heartbeat) -> None:
    """Applies each new report once and in order, then prolongs the lease."""
    lease = tasks.held(draft.run.task, fencing_epoch=signal.fencing_epoch)
    for report in fresh(lease, signal.reports):
        _apply_report(draft, report)
    draft.put_task(tasks.heard(draft.run.task, until=draft.now + signal.lease))


def _apply_report(draft: Draft, report: Report) -> None:
    """Applies one report; one that does not fit is dropped, so that it cannot wedge the lease."""
    lease = draft.run.lease
    assert lease is not None
    at = happened(lease, report, not_before=draft.run.clock.changed_time, now=draft.now)
    draft.put_task(tasks.reported(draft.run.task, number=report.number, at=at))
    trigger = _report_trigger(draft.run, report.body)
    if trigger is None:
        return
    row = find(trigger, draft.run.state, draft.run.stage)
    if row is not None:
        draft.make(Step(trigger=trigger, at=at, signal=report.body), row)


def _report_trigger(run: Run, body: ReportBody) -> Trigger | None:
    """What a report triggers; None for one that comes too late or twice."""
    match body:
        case StageReached():
            return Trigger.STAGE_REACHED if _is_next_stage(run, body.stage) else None
        case TrainingBegan():
            return Trigger.TRAINING_BEGAN
        case MetricsReported():
            return Trigger.METRICS_REPORTED
        case WarningReported():
            return Trigger.WARNING_REPORTED if run.warning_count < MAX_WARNINGS else None
        case CheckpointReported():
            newest = run.checkpoint.step if run.checkpoint else -1
            return Trigger.CHECKPOINT_STORED if body.step > newest else None
        case SamplesReported():
            return Trigger.SAMPLES_REPORTED
        case ActivityReported():
            return Trigger.ACTIVITY_REPORTED if is_news(run.activity, body.activity) else None
        case PauseReported(paused=True):
            return Trigger.PAUSED if run.clock.running_since else None
        case PauseReported():
            return Trigger.RESUMED if run.clock.paused else None
        case _:
            assert_never(body)


def _is_next_stage(run: Run, stage: Stage) -> bool:
    """Whether a stage lies ahead on the node; training itself begins with its first step."""
    if stage in (Stage.TRAINING, Stage.EXPORTING, Stage.DONE):
        return False
    is_after_training = STAGE_ORDER[stage] > STAGE_ORDER[Stage.TRAINING]
    if is_after_training != (run.state is State.TRAINING):
        return False
    return STAGE_ORDER[stage] > STAGE_ORDER[run.stage]


def _apply_tick(draft: Draft, trigger: Trigger) -> None:
    row = find(trigger, draft.run.state, draft.run.stage)
    if row is None:
        return
    run, at, fault, cause = draft.run, draft.now, None, None
    if trigger is Trigger.TIMEOUT_OVERRUN:
        fault = failures.overrun(run)
    elif trigger is Trigger.BUDGET_SPENT:
        at = limits.clock_end(run, draft.now) or draft.now
    elif trigger is Trigger.LIMIT_REACHED:
        cause = limits.reached(run, draft.now)
    draft.make(Step(trigger=trigger, at=at, fault=fault, cause=cause), row)


def _ending(
    run: Run,
    signal: TrainingCompleted | ExportCompleted | TaskFailed | LeaseLost | TaskReleased,
    now: datetime,
) -> Step:
    """The step with which a lease ends."""
    task, fault = run.task, None
    match signal:
        case TrainingCompleted():
            gguf = run.terms.gguf
            trigger = Trigger.TRAINED_EXPORT_NEXT if gguf else Trigger.TRAINED_LAST
        case ExportCompleted():
            trigger = Trigger.EXPORTED
        case TaskReleased():
            trigger = Trigger.RELEASED
        case LeaseLost():
            is_last = tasks.ending_of_loss(task) is Ending.LOST
            trigger = Trigger.LOST if is_last else Trigger.LOST_RETRY
            fault = failures.node_lost(task, failures.NODE_LOST, stage=run.stage, is_last=is_last)
            if is_last:
                fault = failures.final(run, fault, same_oom_count=0)
        case TaskFailed():
            transient = failures.is_transient(signal.fault)
            is_last = tasks.ending_of_failure(task, transient=transient) is Ending.FAILED
            trigger = Trigger.FAILED if is_last else Trigger.FAILED_RETRY
            fault = signal.fault
            if is_last:
                fault = failures.final(run, fault, same_oom_count=signal.same_oom_count)
        case _:
            assert_never(signal)
    return Step(trigger=trigger, at=now, signal=signal, fault=fault)
