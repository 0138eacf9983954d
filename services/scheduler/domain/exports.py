"""Exports of adapters that are stored already: `decide(export, signal, now) -> Export`.

An export owns one task and adds what its user sees. It never touches its run, which has ended and
stays as it is; what it leaves is one more file in a hub entry, or a fault that says why not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, assert_never

from lexicon.faults import TABLE, Category, Fault, FaultCode, Owner, Stage
from scheduler.domain import failures, tasks
from scheduler.domain.activity import Activity, is_news
from scheduler.domain.run import Document
from scheduler.domain.signals import (
    ActivityReported,
    CancelRequested,
    Heartbeat,
    LeaseLost,
    TaskFailed,
    TaskReleased,
    fresh,
)
from scheduler.domain.tasks import Ending, Lease, RunFault, Task, TaskLeased, TaskState

# The kind of its task.
KIND: Final = "STORED_EXPORT"
_EXPORTER_LOST: Final = "Connection to the exporter lost"


class ExportState(StrEnum):
    """The state of an export."""

    QUEUED = "QUEUED"
    EXPORTING = "EXPORTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED: Final = frozenset({ExportState.COMPLETED, ExportState.FAILED, ExportState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a stored adapter was made from, kept beyond the record of its run.

    Attributes:
        run: run that made it.
        inputs: where the files of the base model lie, as its run read them.
        adapter: the loose files of the adapter.
        losses: of single steps, for the model card.
    """

    artifact: str
    run: str
    spec: Document
    snapshot: Document
    inputs: Document
    adapter: Document
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export.

    Attributes:
        sequence: number of its newest event.
        fault: why it ended badly, or why it is tried again.
        file: the bundle in the hub entry.
        activity: what its node does, as last reported.
    """

    name: str
    artifact: str
    run: str
    base_model: str
    quantization: str
    create_time: datetime
    update_time: datetime
    task: Task
    sequence: int = 1
    fault: RunFault | None = None
    proof: Document = b""
    file: Document = b""
    activity: Activity | None = None
    end_time: datetime | None = None
    traceparent: str = ""

    @property
    def state(self) -> ExportState:
        """Its state: an export is what its one task is."""
        return _STATES[self.task.state]

    @property
    def has_ended(self) -> bool:
        """Whether it will never change again."""
        return self.state in ENDED

    @property
    def lease(self) -> Lease | None:
        """Its newest lease, also when that has ended."""
        return self.task.newest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStored:
    """The bundle is in the hub entry."""

    fencing_epoch: int
    file: Document
    proof: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactGone:
    """The hub entry was deleted."""


ExportSignal = (
    TaskLeased
    | Heartbeat
    | ExportStored
    | TaskFailed
    | LeaseLost
    | TaskReleased
    | CancelRequested
    | ArtifactGone
)


def decide(export: Export, signal: ExportSignal, now: datetime) -> Export:
    """What a signal does to an export; its sequence rises when there is something to report.

    Args:
        now: time of the database; it is taken as not before the newest decision.
    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when the state does not allow it; RUN_LEASE_LOST when it
            comes from a lease that is not the newest.
    """
    now = max(now, export.update_time)
    match signal:
        case TaskLeased():
            after = replace(export, task=tasks.lease(export.task, signal, now))
        case Heartbeat():
            after = _heard(export, signal, now)
        case ExportStored() | TaskFailed() | LeaseLost() | TaskReleased():
            tasks.held(export.task, fencing_epoch=signal.fencing_epoch)
            after = _ended(export, signal, now)
        case CancelRequested() | ArtifactGone():
            if export.has_ended:
                raise _illegal(export)
            after = _ended(export, signal, now)
        case _:
            assert_never(signal)
    # A sign of life alone is no news.
    is_reported = not isinstance(signal, Heartbeat) or after.activity != export.activity
    after = replace(after, sequence=export.sequence + is_reported, update_time=now)
    _check(after)
    return after


def check_room(*, required_bytes: int, used_bytes: int, quota_bytes: int) -> None:
    """Lets an export pass that is expected to fit beside what the project keeps.

    Raises:
        Fault: QUOTA_ARTIFACTS_EXCEEDED with the sizes.
    """
    free_bytes = max(0, quota_bytes - used_bytes)
    if required_bytes > free_bytes:
        raise Fault(
            FaultCode.QUOTA_ARTIFACTS_EXCEEDED,
            f"The GGUF takes about {required_bytes} bytes; of the {quota_bytes} bytes for "
            f"artifacts {free_bytes} are free.",
            required_bytes=required_bytes,
            free_bytes=free_bytes,
            quota_bytes=quota_bytes,
        )


def _heard(export: Export, signal: Heartbeat, now: datetime) -> Export:
    """Its node lives; of what it reports on its way the newest activity is kept."""
    lease = tasks.held(export.task, fencing_epoch=signal.fencing_epoch)
    task, activity = export.task, export.activity
    for report in fresh(lease, signal.reports):
        task = tasks.reported(task, number=report.number, at=now)
        if isinstance(report.body, ActivityReported) and is_news(activity, report.body.activity):
            activity = report.body.activity
    return replace(export, task=tasks.heard(task, until=now + signal.lease), activity=activity)


def _ended(
    export: Export,
    signal: ExportStored | TaskFailed | LeaseLost | TaskReleased | CancelRequested | ArtifactGone,
    now: datetime,
) -> Export:
    """The export after the end of its lease, or after its own."""
    task, fault = export.task, None
    match signal:
        case ExportStored():
            ending = Ending.COMPLETED
            export = replace(export, file=signal.file, proof=signal.proof)
        case TaskFailed():
            ending = tasks.ending_of_failure(task, transient=failures.is_transient(signal.fault))
            fault = _shown(signal.fault, task, ending)
        case LeaseLost():
            ending = tasks.ending_of_loss(task)
            lost = failures.node_lost(
                task, _EXPORTER_LOST, stage=Stage.EXPORTING, is_last=ending is Ending.LOST
            )
            fault = _shown(lost, task, ending)
        case TaskReleased():
            ending, fault = Ending.RELEASED, export.fault
        case CancelRequested():
            ending = Ending.CANCELLED
        case ArtifactGone():
            ending = Ending.FAILED
            fault = failures.platform_fault(
                FaultCode.ARTIFACT_NOT_FOUND,
                "The hub entry was deleted.",
                task=task,
                stage=Stage.EXPORTING,
            )
        case _:
            assert_never(signal)
    task = tasks.close(task, ending, now, fault=fault)
    end_time = None if task.state is TaskState.QUEUED else now
    return replace(export, task=task, activity=None, fault=fault, end_time=end_time)


def _shown(fault: RunFault, task: Task, ending: Ending) -> RunFault:
    """What a user sees of the last failure: a code of exports, or what the user can mend."""
    row = TABLE[fault.code]
    if ending in (Ending.FAILED_RETRY, Ending.LOST_RETRY):
        return fault
    if row.category is Category.EXPORT or row.owner is Owner.USER:
        return fault
    return failures.export_failed(fault, task=task, stage=Stage.EXPORTING)


def _illegal(export: Export) -> Fault:
    return Fault(
        FaultCode.RUN_TRANSITION_ILLEGAL,
        f"The export is {export.state}; that cannot be done to it any more.",
        state=export.state,
    )


def _check(export: Export) -> None:
    """Asserts what must be true of every export; the CHECKs of its table say the same."""
    tasks.check(export.task)
    assert export.has_ended == (export.end_time is not None), export.name
    assert (export.state is ExportState.COMPLETED) == bool(export.file), export.name
    assert export.state is not ExportState.FAILED or export.fault is not None, export.name
    assert export.activity is None or export.task.lease is not None, export.name


_STATES: Final[Mapping[TaskState, ExportState]] = {
    TaskState.QUEUED: ExportState.QUEUED,
    TaskState.LEASED: ExportState.EXPORTING,
    TaskState.DONE: ExportState.COMPLETED,
    TaskState.FAILED: ExportState.FAILED,
    TaskState.CANCELLED: ExportState.CANCELLED,
}
