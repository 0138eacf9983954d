"""What can happen to a run or an export: the signals that `decide` answers.

What comes from a lease carries the lease's fencing epoch; a signal of an older epoch changes
nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from lexicon.faults import Stage
from scheduler.domain.activity import Activity
from scheduler.domain.run import Document, Metrics, StoredFile
from scheduler.domain.tasks import Lease, RunFault, TaskLeased


class Loss(StrEnum):
    """How a node was found to be lost."""

    EXPIRED = "EXPIRED"
    RESTARTED = "RESTARTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The run was accepted and paid for; `document` is the run as submitted."""

    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReached:
    """A stage of the work began."""

    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBegan:
    """The first optimizer step of the attempt began."""

    from_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsReported:
    """New figures."""

    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningReported:
    """Something that the user should know and that does not end the run."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReported:
    """A checkpoint is safely stored; training had come to its step so much earlier."""

    step: int
    files: Document
    storing: timedelta = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseReported:
    """Training pauses or goes on."""

    paused: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesReported:
    """The adapter that still trains has answered the held-out prompts."""

    samples: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityReported:
    """The node does something that has no metrics."""

    activity: Activity


ReportBody: TypeAlias = (
    StageReached
    | TrainingBegan
    | MetricsReported
    | WarningReported
    | CheckpointReported
    | PauseReported
    | SamplesReported
    | ActivityReported
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One numbered report of a worker; `age` is how long before its heartbeat it happened."""

    number: int
    age: timedelta
    body: ReportBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The node lives and reports what happened; `lease` is how long it may be silent now."""

    fencing_epoch: int
    lease: timedelta
    reports: tuple[Report, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCompleted:
    """The adapter is safely stored."""

    fencing_epoch: int
    metrics: Metrics | None
    samples: Document
    adapter: Document
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCompleted:
    """The export is safely stored."""

    fencing_epoch: int
    proofs: Document
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """The node gave up; `same_oom_count` runs of this configuration ran out of memory before."""

    fencing_epoch: int
    fault: RunFault
    same_oom_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost:
    """The node is lost."""

    fencing_epoch: int
    loss: Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReleased:
    """The node gives the task back unharmed."""

    fencing_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """The user ends it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """The user ends the training and keeps the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time went by."""


Signal: TypeAlias = (
    TaskLeased
    | Heartbeat
    | TrainingCompleted
    | ExportCompleted
    | TaskFailed
    | LeaseLost
    | TaskReleased
    | CancelRequested
    | StopRequested
    | Tick
)


def fresh(lease: Lease, reports: Iterable[Report]) -> list[Report]:
    """Reports that were not applied yet, in order, each once; numbers may be left out."""
    newer = {report.number: report for report in reports if report.number > lease.report_number}
    return [newer[number] for number in sorted(newer)]


def happened(
    lease: Lease, report: Report, *, not_before: datetime | None, now: datetime
) -> datetime:
    """When a report's event happened, by the database's clock.

    A node reports only how long ago something was. Its word is bounded: not before its lease, not
    before what it reported earlier, not before the last change of the clock, and not in the
    future.
    """
    reported = now - max(report.age, timedelta())
    earliest = max(lease.lease_time, lease.report_time, not_before or lease.lease_time)
    return min(max(reported, earliest), now)
