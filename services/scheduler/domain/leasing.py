"""Leases: how long a node may be silent, how often another is tried, whose word still counts."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from lexicon.faults import Fault, FaultCode
from scheduler.domain.clock import ZERO
from scheduler.domain.run import Lease, Run, Task, TaskKind, TaskState
from scheduler.domain.signals import Report, TaskLeased

# A lost node is retried twice, so three attempts in all (A13); an export gets the same.
MAX_ATTEMPTS: Final = 3

# Wait before a task that failed for a moment is offered again: it doubles with every failure.
_RETRY_DELAY: Final = timedelta(seconds=2)


def may_retry(task: Task) -> bool:
    """Whether another attempt may follow when this one ends badly."""
    return task.failures + 1 < MAX_ATTEMPTS


def retry_delay(failures: int) -> timedelta:
    """How long a task rests after so many failed attempts."""
    return _RETRY_DELAY * (1 << max(failures - 1, 0))


def next_lease(run: Run, signal: TaskLeased, now: datetime) -> Lease:
    """The lease that a node gets: a fencing epoch higher than all before."""
    from_checkpoint = run.checkpoint is not None and signal.kind is TaskKind.TRAIN
    return Lease(
        lease_id=signal.lease_id,
        kind=signal.kind,
        attempt=run.task.failures + 1,
        fencing_epoch=run.fencing_epoch + 1,
        node=signal.node,
        incarnation=signal.incarnation,
        lease_time=now,
        expire_time=now + signal.lease,
        report_time=now,
        resumed_from_step=run.checkpoint.step if run.checkpoint and from_checkpoint else 0,
    )


def check_open(run: Run) -> None:
    """Checks that the task waits for a node.

    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when a node has it, or it has ended.
    """
    if run.task.state is not TaskState.QUEUED:
        raise Fault(
            FaultCode.RUN_TRANSITION_ILLEGAL,
            f"The task of the run is {run.task.state}, not open.",
            task_state=run.task.state,
        )


def held(run: Run, *, fencing_epoch: int) -> Lease:
    """The lease under way, when the epoch is its own.

    Raises:
        Fault: RUN_LEASE_LOST for any other epoch.
    """
    if run.lease is None or run.lease.fencing_epoch != fencing_epoch:
        raise Fault(
            FaultCode.RUN_LEASE_LOST, fencing_epoch=fencing_epoch, newest_epoch=run.fencing_epoch
        )
    return run.lease


def fresh(lease: Lease, reports: Iterable[Report]) -> list[Report]:
    """Reports that were not applied yet, in order, each once; numbers may be left out."""
    newer = {report.number: report for report in reports if report.number > lease.report_number}
    return [newer[number] for number in sorted(newer)]


def happened(
    lease: Lease, report: Report, *, not_before: datetime | None, now: datetime
) -> datetime:
    """When a report's event happened, by the database's clock.

    A node tells only how long ago something was. Its word is bounded: not before its lease, not
    before what it reported earlier, not before the last change of the clock, and not in the
    future.
    """
    told = now - max(report.age, ZERO)
    earliest = max(lease.lease_time, lease.report_time, not_before or lease.lease_time)
    return min(max(told, earliest), now)
