"""The state machine of a run as one table; the diagram in the docs and the tests are made from it.

A transition is a value: what triggers it, from which states and stages, to which, and its effects
in order. What is not in the table does not happen: a verb of a user is then refused, a late
report of a worker is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lexicon.faults import Fault, FaultCode, Stage
from scheduler.domain.run import State
from scheduler.domain.tasks import Ending


class Trigger(StrEnum):
    """What makes a transition: a signal, with what the policies say about it."""

    SUBMITTED = "submitted"
    LEASED = "leased"
    STAGE_REACHED = "stage reached"
    TRAINING_BEGAN = "training began"
    METRICS_REPORTED = "metrics reported"
    WARNING_REPORTED = "warning reported"
    CHECKPOINT_STORED = "checkpoint stored"
    SAMPLES_REPORTED = "samples reported"
    ACTIVITY_REPORTED = "activity reported"
    PAUSED = "paused"
    RESUMED = "resumed"
    TRAINED_EXPORT_NEXT = "trained, export next"
    TRAINED_LAST = "trained, nothing to export"
    EXPORTED = "exported"
    FAILED_RETRY = "failed for a moment"
    FAILED = "failed"
    LOST_RETRY = "node lost"
    LOST = "node lost in the last attempt"
    RELEASED = "given back"
    CANCEL_REQUESTED = "cancel"
    STOP_REQUESTED = "stop"
    LIMIT_REACHED = "limit reached"
    BUDGET_SPENT = "budget spent"
    TIMEOUT_OVERRUN = "timeout overrun"
    PROGRESS_DUE = "progress due"


class Effect(StrEnum):
    """One thing that a transition does; each is a function in `decision`."""

    ANNOUNCE = "announce the run"
    OPEN_LEASE = "open lease"
    CLOSE_LEASE = "close lease"
    QUEUE_EXPORT = "queue the export"
    MOVE = "change state"
    DROP_CHECKPOINT = "drop a checkpoint that was not used"
    START_CLOCK = "start clock"
    PAUSE_CLOCK = "pause clock"
    RESUME_CLOCK = "resume clock"
    STOP_CLOCK = "stop clock"
    VOID_CLOCK = "void clock"
    RECORD_METRICS = "record metrics"
    RECORD_SAMPLES = "record samples"
    RECORD_RESULT = "record result"
    STORE_ARTIFACTS = "store artifacts"
    REPORT_PROGRESS = "report progress"
    REPORT_ACTIVITY = "report activity"
    COMMIT_CHECKPOINT = "commit checkpoint"
    WARN = "warn"
    WARN_NODE_LOST = "warn of the lost node"
    WARN_RETRYING = "warn of the retry"
    WARN_LIMIT = "warn of the limit"
    REQUEST_FINISH = "ask the node to finish"
    END = "end the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One row of the table.

    Attributes:
        stages: stages from which it is possible.
        target: state after it; None leaves it.
        stage: stage after it; None leaves it, or takes the one that was reported.
        effects: what it does, in order.
        reason: why, in a sentence for the user.
        ending: what becomes of the task, where its lease ends.
    """

    trigger: Trigger
    sources: frozenset[State]
    stages: frozenset[Stage]
    target: State | None = None
    stage: Stage | None = None
    effects: tuple[Effect, ...]
    reason: str = ""
    ending: Ending | None = None


_QUEUED = frozenset({State.QUEUED})
_RETRYING = frozenset({State.RETRYING})
_TRAINING = frozenset({State.TRAINING})
_BEFORE_TRAINING = frozenset({State.WAITING_FOR_GPU, State.RETRYING})
_WORKING = _BEFORE_TRAINING | _TRAINING
_ALIVE = _WORKING | _QUEUED

_IN_QUEUE = frozenset({Stage.QUEUED})
_PREPARING = frozenset({Stage.PROVISIONING, Stage.DATA_DOWNLOAD, Stage.INITIALIZATION})
_ON_NODE = _PREPARING | {Stage.TRAINING, Stage.SAVING, Stage.UPLOAD}
_EXPORTING = frozenset({Stage.EXPORTING})
_ANY = _IN_QUEUE | _ON_NODE | _EXPORTING

TABLE: Final[tuple[Transition, ...]] = (
    Transition(
        trigger=Trigger.SUBMITTED,
        sources=frozenset(),
        stages=frozenset(),
        target=State.QUEUED,
        stage=Stage.QUEUED,
        effects=(Effect.ANNOUNCE,),
    ),
    Transition(
        trigger=Trigger.LEASED,
        sources=_QUEUED,
        stages=_IN_QUEUE,
        target=State.WAITING_FOR_GPU,
        stage=Stage.PROVISIONING,
        effects=(Effect.OPEN_LEASE, Effect.MOVE),
        reason="A node took the run.",
    ),
    Transition(
        trigger=Trigger.LEASED,
        sources=_RETRYING,
        stages=_IN_QUEUE,
        target=State.RETRYING,
        stage=Stage.PROVISIONING,
        effects=(Effect.OPEN_LEASE, Effect.MOVE),
        reason="Another node took the run.",
    ),
    Transition(
        trigger=Trigger.STAGE_REACHED,
        sources=_WORKING,
        stages=_ON_NODE,
        effects=(Effect.MOVE,),
        reason="The next stage began.",
    ),
    Transition(
        trigger=Trigger.TRAINING_BEGAN,
        sources=_BEFORE_TRAINING,
        stages=_PREPARING,
        target=State.TRAINING,
        stage=Stage.TRAINING,
        effects=(Effect.MOVE, Effect.DROP_CHECKPOINT, Effect.START_CLOCK),
        reason="The first optimizer step began.",
    ),
    Transition(
        trigger=Trigger.METRICS_REPORTED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.RECORD_METRICS,),
    ),
    Transition(
        trigger=Trigger.WARNING_REPORTED,
        sources=_WORKING,
        stages=_ANY,
        effects=(Effect.WARN,),
    ),
    Transition(
        trigger=Trigger.CHECKPOINT_STORED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.COMMIT_CHECKPOINT,),
    ),
    Transition(
        trigger=Trigger.SAMPLES_REPORTED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.RECORD_SAMPLES,),
    ),
    Transition(
        trigger=Trigger.ACTIVITY_REPORTED,
        sources=_WORKING,
        stages=_ON_NODE | _EXPORTING,
        effects=(Effect.REPORT_ACTIVITY,),
    ),
    Transition(
        trigger=Trigger.PAUSED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.PAUSE_CLOCK,),
    ),
    Transition(
        trigger=Trigger.RESUMED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.RESUME_CLOCK,),
    ),
    Transition(
        trigger=Trigger.TRAINED_EXPORT_NEXT,
        sources=_TRAINING,
        stages=_ON_NODE,
        target=State.TRAINING,
        stage=Stage.EXPORTING,
        effects=(
            Effect.RECORD_RESULT,
            Effect.REPORT_PROGRESS,
            Effect.STORE_ARTIFACTS,
            Effect.STOP_CLOCK,
            Effect.CLOSE_LEASE,
            Effect.QUEUE_EXPORT,
            Effect.MOVE,
        ),
        reason="The adapter is stored and the node is free; the export is queued.",
        ending=Ending.COMPLETED,
    ),
    Transition(
        trigger=Trigger.TRAINED_LAST,
        sources=_TRAINING,
        stages=_ON_NODE,
        target=State.COMPLETED,
        stage=Stage.DONE,
        effects=(
            Effect.RECORD_RESULT,
            Effect.REPORT_PROGRESS,
            Effect.STORE_ARTIFACTS,
            Effect.STOP_CLOCK,
            Effect.CLOSE_LEASE,
            Effect.MOVE,
            Effect.END,
        ),
        reason="The adapter is stored.",
        ending=Ending.COMPLETED,
    ),
    Transition(
        trigger=Trigger.FAILED_RETRY,
        sources=_WORKING,
        stages=_ON_NODE,
        target=State.RETRYING,
        stage=Stage.QUEUED,
        effects=(
            Effect.VOID_CLOCK,
            Effect.CLOSE_LEASE,
            Effect.MOVE,
            Effect.WARN_RETRYING,
        ),
        reason="The node failed for a moment.",
        ending=Ending.FAILED_RETRY,
    ),
    Transition(
        trigger=Trigger.FAILED,
        sources=_WORKING,
        stages=_ON_NODE,
        target=State.FAILED,
        stage=Stage.DONE,
        effects=(Effect.STOP_CLOCK, Effect.CLOSE_LEASE, Effect.MOVE, Effect.END),
        reason="Training failed.",
        ending=Ending.FAILED,
    ),
    Transition(
        trigger=Trigger.LOST_RETRY,
        sources=_WORKING,
        stages=_ON_NODE,
        target=State.RETRYING,
        stage=Stage.QUEUED,
        effects=(
            Effect.WARN_NODE_LOST,
            Effect.VOID_CLOCK,
            Effect.CLOSE_LEASE,
            Effect.MOVE,
            Effect.WARN_RETRYING,
        ),
        reason="The node was lost.",
        ending=Ending.LOST_RETRY,
    ),
    Transition(
        trigger=Trigger.LOST,
        sources=_WORKING,
        stages=_ON_NODE,
        target=State.FAILED,
        stage=Stage.DONE,
        effects=(
            Effect.WARN_NODE_LOST,
            Effect.VOID_CLOCK,
            Effect.CLOSE_LEASE,
            Effect.MOVE,
            Effect.END,
        ),
        reason="The node was lost, as in the attempts before.",
        ending=Ending.LOST,
    ),
    Transition(
        trigger=Trigger.RELEASED,
        sources=_WORKING,
        stages=_ON_NODE,
        target=State.RETRYING,
        stage=Stage.QUEUED,
        effects=(Effect.VOID_CLOCK, Effect.CLOSE_LEASE, Effect.MOVE),
        reason="The node shuts down and gave the run back.",
        ending=Ending.RELEASED,
    ),
    Transition(
        trigger=Trigger.LEASED,
        sources=_TRAINING,
        stages=_EXPORTING,
        effects=(Effect.OPEN_LEASE,),
    ),
    Transition(
        trigger=Trigger.EXPORTED,
        sources=_TRAINING,
        stages=_EXPORTING,
        target=State.COMPLETED,
        stage=Stage.DONE,
        effects=(
            Effect.RECORD_RESULT,
            Effect.STORE_ARTIFACTS,
            Effect.CLOSE_LEASE,
            Effect.MOVE,
            Effect.END,
        ),
        reason="All artifacts are stored.",
        ending=Ending.COMPLETED,
    ),
    Transition(
        trigger=Trigger.FAILED_RETRY,
        sources=_TRAINING,
        stages=_EXPORTING,
        effects=(Effect.CLOSE_LEASE, Effect.WARN_RETRYING),
        ending=Ending.FAILED_RETRY,
    ),
    Transition(
        trigger=Trigger.FAILED,
        sources=_TRAINING,
        stages=_EXPORTING,
        target=State.FAILED,
        stage=Stage.DONE,
        effects=(Effect.CLOSE_LEASE, Effect.MOVE, Effect.END),
        reason="The adapter is stored, but the export failed.",
        ending=Ending.FAILED,
    ),
    Transition(
        trigger=Trigger.LOST_RETRY,
        sources=_TRAINING,
        stages=_EXPORTING,
        effects=(
            Effect.WARN_NODE_LOST,
            Effect.CLOSE_LEASE,
            Effect.WARN_RETRYING,
        ),
        ending=Ending.LOST_RETRY,
    ),
    Transition(
        trigger=Trigger.LOST,
        sources=_TRAINING,
        stages=_EXPORTING,
        target=State.FAILED,
        stage=Stage.DONE,
        effects=(Effect.WARN_NODE_LOST, Effect.CLOSE_LEASE, Effect.MOVE, Effect.END),
        reason="The adapter is stored, but the exporter was lost in every attempt.",
        ending=Ending.LOST,
    ),
    Transition(
        trigger=Trigger.RELEASED,
        sources=_TRAINING,
        stages=_EXPORTING,
        effects=(Effect.CLOSE_LEASE,),
        ending=Ending.RELEASED,
    ),
    Transition(
        trigger=Trigger.CANCEL_REQUESTED,
        sources=_ALIVE,
        stages=_ANY,
        target=State.CANCELLED,
        stage=Stage.DONE,
        effects=(Effect.STOP_CLOCK, Effect.CLOSE_LEASE, Effect.MOVE, Effect.END),
        reason="The user cancelled the run.",
        ending=Ending.CANCELLED,
    ),
    Transition(
        trigger=Trigger.STOP_REQUESTED,
        sources=_WORKING,
        stages=_IN_QUEUE | _ON_NODE,
        effects=(Effect.REQUEST_FINISH,),
    ),
    Transition(
        trigger=Trigger.LIMIT_REACHED,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.REQUEST_FINISH, Effect.WARN_LIMIT),
    ),
    Transition(
        trigger=Trigger.BUDGET_SPENT,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.STOP_CLOCK,),
    ),
    Transition(
        trigger=Trigger.TIMEOUT_OVERRUN,
        sources=_TRAINING,
        stages=_ON_NODE,
        target=State.FAILED,
        stage=Stage.DONE,
        effects=(Effect.STOP_CLOCK, Effect.CLOSE_LEASE, Effect.MOVE, Effect.END),
        reason="The run did not end in time.",
        ending=Ending.FAILED,
    ),
    Transition(
        trigger=Trigger.PROGRESS_DUE,
        sources=_TRAINING,
        stages=_ON_NODE,
        effects=(Effect.REPORT_PROGRESS,),
    ),
)

_ROWS: Final[Mapping[tuple[Trigger, State, Stage], Transition]] = {
    (row.trigger, state, stage): row
    for row in TABLE
    for state in row.sources
    for stage in row.stages
}


def find(trigger: Trigger, state: State, stage: Stage) -> Transition | None:
    """The row that applies, or None when nothing may happen."""
    return _ROWS.get((trigger, state, stage))


def require(trigger: Trigger, state: State, stage: Stage) -> Transition:
    """The row that applies.

    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when there is none.
    """
    row = find(trigger, state, stage)
    if row is None:
        raise Fault(
            FaultCode.RUN_TRANSITION_ILLEGAL,
            f"A run that is {state} in stage {stage} does not allow: {trigger}.",
            state=state,
            run_stage=stage,
            trigger=trigger,
        )
    return row
