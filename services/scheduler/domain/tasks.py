"""The lease machine: a task of any kind and any owner, in the hands of one node after another.

Nothing else decides on epochs, attempts, rests and expiry. Each verb takes a task and gives the
task after it. What the end of a lease means for the owner of the task, a run or an export, is
decided by the owner, from the `Ending` that is named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from lexicon.faults import Fault, FaultCode, Stage

# A lost node is retried twice, so three attempts in all (A13); every kind of task gets the same.
MAX_ATTEMPTS: Final = 3

# Wait before a task that failed for a moment is offered again: it doubles with every failure.
_RETRY_DELAY: Final = timedelta(seconds=2)


class TaskKind(StrEnum):
    """What a node does, and the kinds of task of a run; other owners have kinds of their own."""

    TRAIN = "TRAIN"
    EXPORT = "EXPORT"


class TaskState(StrEnum):
    """The state of a task."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class LeaseOutcome(StrEnum):
    """How a lease ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    LOST = "LOST"
    RELEASED = "RELEASED"
    CANCELLED = "CANCELLED"


class Ending(StrEnum):
    """What the end of a lease means for its task."""

    COMPLETED = "completed"
    FAILED_RETRY = "failed for a moment"
    FAILED = "failed"
    LOST_RETRY = "node lost"
    LOST = "node lost in the last attempt"
    RELEASED = "given back"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFault:
    """What went wrong, in the words of the table of codes."""

    code: FaultCode
    message: str
    remedy: str
    stage: Stage
    node: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A task in the hands of a node.

    Attributes:
        attempt: attempt of the task, from 1; a lease that was given back does not count.
        fencing_epoch: rises with every lease of the owner.
        report_number: highest report that was applied.
        report_time: time of that report; later ones are not before it.
        resumed_from_step: step it began from.
    """

    lease_id: str
    kind: str
    attempt: int
    fencing_epoch: int
    node: str
    incarnation: str
    lease_time: datetime
    expire_time: datetime
    report_number: int = 0
    report_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    outcome: LeaseOutcome | None = None
    fault: RunFault | None = None
    resumed_from_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work for one node.

    Attributes:
        kind: a row of the table of kinds.
        failures: attempts that ended badly; the next one is `failures + 1`.
        queue_time: when it first queued; it keeps its place when it queues again.
        not_before: not offered earlier.
        fencing_epoch: epoch of the newest lease of the owner.
        newest: the newest lease of this task; it may have ended.
    """

    kind: str
    state: TaskState = TaskState.QUEUED
    failures: int = 0
    queue_time: datetime
    not_before: datetime
    fencing_epoch: int = 0
    newest: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        """The lease that a node holds."""
        return self.newest if self.newest and self.newest.outcome is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLeased:
    """A node takes the open task, for so long unless it is heard of."""

    lease_id: str
    node: str
    incarnation: str
    lease: timedelta


def queued(kind: str, now: datetime, *, fencing_epoch: int = 0) -> Task:
    """A new task; one that follows another of the same owner goes on from its epoch."""
    return Task(kind=kind, queue_time=now, not_before=now, fencing_epoch=fencing_epoch)


def lease(task: Task, signal: TaskLeased, now: datetime, *, resumed_from_step: int = 0) -> Task:
    """The task in the hands of a node, with a fencing epoch higher than all before.

    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when a node has it, or it has ended.
    """
    if task.state is not TaskState.QUEUED:
        raise Fault(
            FaultCode.RUN_TRANSITION_ILLEGAL,
            f"The task is {task.state}, not open.",
            task_state=task.state,
        )
    epoch = task.fencing_epoch + 1
    given = Lease(
        lease_id=signal.lease_id,
        kind=task.kind,
        attempt=task.failures + 1,
        fencing_epoch=epoch,
        node=signal.node,
        incarnation=signal.incarnation,
        lease_time=now,
        expire_time=now + signal.lease,
        report_time=now,
        resumed_from_step=resumed_from_step,
    )
    return replace(task, state=TaskState.LEASED, fencing_epoch=epoch, newest=given)


def held(task: Task, *, fencing_epoch: int) -> Lease:
    """The lease under way, when the epoch is its own.

    Raises:
        Fault: RUN_LEASE_LOST for any other epoch.
    """
    found = task.lease
    if found is None or found.fencing_epoch != fencing_epoch:
        raise Fault(
            FaultCode.RUN_LEASE_LOST, fencing_epoch=fencing_epoch, newest_epoch=task.fencing_epoch
        )
    return found


def heard(task: Task, *, until: datetime) -> Task:
    """The node is alive; it may be silent until then."""
    assert task.lease is not None
    return replace(task, newest=replace(task.lease, expire_time=until))


def reported(task: Task, *, number: int, at: datetime) -> Task:
    """A report of the node was applied."""
    assert task.lease is not None
    return replace(task, newest=replace(task.lease, report_number=number, report_time=at))


def begun(task: Task, *, at: datetime, from_step: int) -> Task:
    """The work proper began, at this step."""
    assert task.lease is not None
    newest = replace(task.lease, start_time=at, resumed_from_step=from_step)
    return replace(task, newest=newest)


def is_expired(lease: Lease, now: datetime) -> bool:
    """Whether its node was silent for too long."""
    return lease.expire_time <= now


def ending_of_failure(task: Task, *, transient: bool) -> Ending:
    """What a failure means: another attempt may follow one that fails for a moment."""
    return Ending.FAILED_RETRY if transient and _may_retry(task) else Ending.FAILED


def ending_of_loss(task: Task) -> Ending:
    """What the loss of the node means: another attempt, unless it was the last."""
    return Ending.LOST_RETRY if _may_retry(task) else Ending.LOST


def close(task: Task, ending: Ending, now: datetime, *, fault: RunFault | None = None) -> Task:
    """The task after the end of its lease, or after its own end when nobody has it.

    A task that queues again keeps its place; what was given back does not count as an attempt.
    """
    outcome, state = _ENDINGS[ending]
    newest = task.newest
    if task.lease is not None:
        newest = replace(task.lease, end_time=now, outcome=outcome, fault=fault)
    after = replace(task, state=state, newest=newest)
    if state is TaskState.QUEUED:
        failures = task.failures + (ending is not Ending.RELEASED)
        rest = _retry_delay(failures) if ending is Ending.FAILED_RETRY else timedelta()
        after = replace(after, failures=failures, not_before=now + rest)
    check(after)
    return after


def check(task: Task) -> None:
    """Asserts what must be true of every task; the CHECKs of the tables say the same."""
    assert (task.state is TaskState.LEASED) == (task.lease is not None), task
    assert task.newest is None or task.newest.fencing_epoch == task.fencing_epoch, task
    assert 0 <= task.failures < MAX_ATTEMPTS, task


def _may_retry(task: Task) -> bool:
    """Whether another attempt may follow when this one ends badly."""
    return task.failures + 1 < MAX_ATTEMPTS


def _retry_delay(failures: int) -> timedelta:
    """How long a task rests after so many failed attempts."""
    return _RETRY_DELAY * (1 << max(failures - 1, 0))


_ENDINGS: Final[Mapping[Ending, tuple[LeaseOutcome, TaskState]]] = {
    Ending.COMPLETED: (LeaseOutcome.COMPLETED, TaskState.DONE),
    Ending.FAILED_RETRY: (LeaseOutcome.FAILED, TaskState.QUEUED),
    Ending.FAILED: (LeaseOutcome.FAILED, TaskState.FAILED),
    Ending.LOST_RETRY: (LeaseOutcome.LOST, TaskState.QUEUED),
    Ending.LOST: (LeaseOutcome.LOST, TaskState.FAILED),
    Ending.RELEASED: (LeaseOutcome.RELEASED, TaskState.QUEUED),
    Ending.CANCELLED: (LeaseOutcome.CANCELLED, TaskState.CANCELLED),
}
