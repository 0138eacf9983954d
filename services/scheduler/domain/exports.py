"""Exports of adapters that are stored already: `decide(export, signal, now) -> Export`.

An export is a small machine of its own beside the runs. It never touches its run, which has ended
and stays as it is; what it leaves is one more file in a hub entry, or a fault that says why not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never

from lexicon.faults import TABLE, Category, Fault, FaultCode, Owner, Stage
from scheduler.domain import failures
from scheduler.domain.activity import Activity, is_news
from scheduler.domain.leasing import MAX_ATTEMPTS, retry_delay
from scheduler.domain.run import Document, Outcome, RunFault


class ExportState(StrEnum):
    """Where an export stands."""

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
class ExportLease:
    """The newest lease of an export; `outcome` is None while a node holds it."""

    lease_id: str
    node: str
    incarnation: str
    attempt: int
    fencing_epoch: int
    expire_time: datetime
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export.

    Attributes:
        sequence: number of its newest event.
        failures: attempts that ended badly; the next one is `failures + 1`.
        not_before: not offered earlier.
        fault: why it ended badly, or why it is tried again.
        file: the bundle in the hub entry.
        activity: what its node does, as last told.
    """

    name: str
    artifact: str
    run: str
    base_model: str
    quantization: str
    create_time: datetime
    update_time: datetime
    not_before: datetime
    state: ExportState = ExportState.QUEUED
    sequence: int = 1
    failures: int = 0
    fencing_epoch: int = 0
    lease: ExportLease | None = None
    fault: RunFault | None = None
    proof: Document = b""
    file: Document = b""
    activity: Activity | None = None
    end_time: datetime | None = None
    traceparent: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it will never change again."""
        return self.state in ENDED

    @property
    def open_lease(self) -> ExportLease | None:
        """The lease that a node holds."""
        return self.lease if self.lease and self.lease.outcome is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A node takes it, for so long unless it is heard of."""

    lease_id: str
    node: str
    incarnation: str
    lease: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The node is alive, and says what it does."""

    fencing_epoch: int
    lease: timedelta
    activity: Activity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The bundle is in the hub entry."""

    fencing_epoch: int
    file: Document
    proof: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The node could not make it, or the hub did not take it."""

    fencing_epoch: int
    fault: RunFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The node was not heard of any more."""

    fencing_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The node gave it back."""

    fencing_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Its user ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactGone:
    """The hub entry was deleted."""


ExportSignal = Leased | Heard | Stored | Failed | Lost | Released | Cancelled | ArtifactGone


def decide(export: Export, signal: ExportSignal, now: datetime) -> Export:
    """What a signal does to an export; its sequence rises when there is something to tell.

    Args:
        now: time of the database; it is taken as not before the newest decision.
    Raises:
        Fault: RUN_TRANSITION_ILLEGAL when the state does not allow it; RUN_LEASE_LOST when it
            comes from a lease that is not the newest.
    """
    now = max(now, export.update_time)
    match signal:
        case Leased():
            after = _lease(export, signal, now)
        case Heard():
            lease = held(export, fencing_epoch=signal.fencing_epoch)
            prolonged = replace(lease, expire_time=now + signal.lease)
            after = replace(export, lease=prolonged, update_time=now)
            if signal.activity is None or not is_news(export.activity, signal.activity):
                _check(after)
                return after
            after = replace(after, activity=signal.activity)
        case Stored():
            held(export, fencing_epoch=signal.fencing_epoch)
            after = replace(export, file=signal.file, proof=signal.proof)
            after = _end(after, ExportState.COMPLETED, Outcome.COMPLETED, now, fault=None)
        case Failed():
            held(export, fencing_epoch=signal.fencing_epoch)
            after = _fail(export, signal.fault, now)
        case Lost():
            after = _lose(export, held(export, fencing_epoch=signal.fencing_epoch), now)
        case Released():
            held(export, fencing_epoch=signal.fencing_epoch)
            after = _requeue(export, Outcome.RELEASED, now, fault=export.fault, rest=timedelta())
        case Cancelled():
            _require_open(export)
            after = _end(export, ExportState.CANCELLED, Outcome.CANCELLED, now, fault=None)
        case ArtifactGone():
            _require_open(export)
            gone = _fault(FaultCode.ARTIFACT_NOT_FOUND, "The hub entry was deleted.", export)
            after = _end(export, ExportState.FAILED, Outcome.FAILED, now, fault=gone)
        case _:
            assert_never(signal)
    after = replace(after, sequence=export.sequence + 1, update_time=now)
    _check(after)
    return after


def held(export: Export, *, fencing_epoch: int) -> ExportLease:
    """The lease under way, when the epoch is its own.

    Raises:
        Fault: RUN_LEASE_LOST for any other epoch.
    """
    lease = export.open_lease
    if lease is None or lease.fencing_epoch != fencing_epoch:
        raise Fault(
            FaultCode.RUN_LEASE_LOST,
            fencing_epoch=fencing_epoch,
            newest_epoch=export.fencing_epoch,
        )
    return lease


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


def _lease(export: Export, signal: Leased, now: datetime) -> Export:
    if export.state is not ExportState.QUEUED:
        raise _illegal(export)
    epoch = export.fencing_epoch + 1
    lease = ExportLease(
        lease_id=signal.lease_id,
        node=signal.node,
        incarnation=signal.incarnation,
        attempt=export.failures + 1,
        fencing_epoch=epoch,
        expire_time=now + signal.lease,
    )
    return replace(export, state=ExportState.EXPORTING, fencing_epoch=epoch, lease=lease)


def _fail(export: Export, fault: RunFault, now: datetime) -> Export:
    if _may_retry(export) and failures.is_transient(fault):
        rest = retry_delay(export.failures + 1)
        return _requeue(export, Outcome.FAILED, now, fault=fault, rest=rest)
    return _end(export, ExportState.FAILED, Outcome.FAILED, now, fault=_final(fault, export))


def _lose(export: Export, lease: ExportLease, now: datetime) -> Export:
    fault = _fault(
        FaultCode.RUNTIME_WORKER_LOST,
        "Connection to the exporter lost",
        export,
        metadata={"attempt": str(lease.attempt)},
    )
    if _may_retry(export):
        return _requeue(export, Outcome.LOST, now, fault=fault, rest=timedelta())
    last = replace(fault, message=f"{fault.message}; given up after {MAX_ATTEMPTS} attempts.")
    return _end(export, ExportState.FAILED, Outcome.LOST, now, fault=_final(last, export))


def _may_retry(export: Export) -> bool:
    return export.failures + 1 < MAX_ATTEMPTS


def _requeue(
    export: Export, outcome: Outcome, now: datetime, *, fault: RunFault | None, rest: timedelta
) -> Export:
    assert export.lease is not None
    # What was given back does not count as an attempt.
    failed = 0 if outcome is Outcome.RELEASED else 1
    return replace(
        export,
        state=ExportState.QUEUED,
        failures=export.failures + failed,
        lease=replace(export.lease, outcome=outcome),
        activity=None,
        not_before=now + rest,
        fault=fault,
    )


def _end(
    export: Export,
    state: ExportState,
    outcome: Outcome,
    now: datetime,
    *,
    fault: RunFault | None,
) -> Export:
    lease = export.lease
    if lease is not None and lease.outcome is None:
        lease = replace(lease, outcome=outcome)
    return replace(export, state=state, lease=lease, activity=None, end_time=now, fault=fault)


def _final(fault: RunFault, export: Export) -> RunFault:
    """What a user sees: a code of exports, or what the user can mend; the cause stands with it."""
    row = TABLE[fault.code]
    if row.category is Category.EXPORT or row.owner is Owner.USER:
        return fault
    return _fault(
        FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
        f"The GGUF export failed: {fault.message}",
        export,
        metadata={**fault.metadata, "cause": fault.code},
    )


def _fault(
    code: FaultCode, message: str, export: Export, *, metadata: Mapping[str, str] | None = None
) -> RunFault:
    lease = export.open_lease
    return RunFault(
        code=code,
        message=message,
        remedy=TABLE[code].remedy,
        stage=Stage.EXPORTING,
        node=lease.node if lease else "",
        metadata=metadata or {},
    )


def _require_open(export: Export) -> None:
    if export.has_ended:
        raise _illegal(export)


def _illegal(export: Export) -> Fault:
    return Fault(
        FaultCode.RUN_TRANSITION_ILLEGAL,
        f"The export is {export.state}; that cannot be done to it any more.",
        state=export.state,
    )


def _check(export: Export) -> None:
    """Asserts what must be true of every export; the CHECKs of its table say the same."""
    assert export.has_ended == (export.end_time is not None), export.name
    assert (export.state is ExportState.EXPORTING) == (export.open_lease is not None), export.name
    assert export.lease is None or export.lease.fencing_epoch == export.fencing_epoch, export.name
    assert (export.state is ExportState.COMPLETED) == bool(export.file), export.name
    assert export.state is not ExportState.FAILED or export.fault is not None, export.name
    assert 0 <= export.failures < MAX_ATTEMPTS, export.name
    assert export.activity is None or export.open_lease is not None, export.name
