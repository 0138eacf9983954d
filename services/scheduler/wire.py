"""Protobuf ⇄ domain for runs, faults and events; pure, and total over the enums."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, assert_never, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import errors, redaction
from lexicon.faults import TABLE, Fault, FaultCode, Stage
from scheduler.domain import limits
from scheduler.domain.activity import Activity
from scheduler.domain.clock import Reading
from scheduler.domain.effects import reading
from scheduler.domain.events import (
    ActivityChanged,
    ArtifactStored,
    Body,
    CheckpointCommitted,
    ClockChanged,
    Ended,
    Event,
    Progressed,
    RunSubmitted,
    SamplesRecorded,
    StateChanged,
    Warned,
)
from scheduler.domain.run import Document, Record, RunWarning, State, StoredFile
from scheduler.domain.tasks import Lease, RunFault
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2, fault_service_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_service_pb2

SCHEMA_VERSION: Final = 1
CURRENCY: Final = "CREDIT"

# Text of a fault or warning that is kept; more is cut, since a worker may send anything.
MESSAGE_CHARACTERS_MAX: Final = 2000
ACTIVITY_CHARACTERS_MAX: Final = 200
METADATA_ENTRIES_MAX: Final = 32
METADATA_CHARACTERS_MAX: Final = 500

_Parsed = TypeVar("_Parsed", bound=Message)


def clean(text: str, *, limit: int = MESSAGE_CHARACTERS_MAX) -> str:
    """A worker's text as it can be kept: short, without secrets, without NUL for Postgres."""
    return redaction.redact(text[:limit].replace("\x00", ""))


def parse(kind: type[_Parsed], document: Document) -> _Parsed:
    """The message in a document."""
    message = kind()
    message.ParseFromString(document)
    return message


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment on the wire; None stays unset."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp) -> datetime:
    """A moment from the wire, with its zone."""
    return stamp.ToDatetime(tzinfo=UTC)


def duration(span: timedelta) -> Duration:
    """A span on the wire."""
    message = Duration()
    message.FromTimedelta(span)
    return message


def money(amount_micros: int) -> billing_pb2.Money:
    """An amount on the wire."""
    return billing_pb2.Money(amount_micros=amount_micros, currency_code=CURRENCY)


def state_to_proto(state: State) -> run_pb2.RunState:
    """The contract's state."""
    return cast(run_pb2.RunState, run_pb2.RunState.Value(f"RUN_STATE_{state.name}"))


def states_from_proto(states: Iterable[int]) -> tuple[State, ...]:
    """Our states.

    Raises:
        Fault: INPUT_FIELD_INVALID for one that is not set or not known.
    """
    try:
        names = [run_pb2.RunState.Name(state).removeprefix("RUN_STATE_") for state in states]
        return tuple(State(name) for name in names)
    except ValueError:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID, "states names an unknown state.", field="states"
        ) from None


def fault_to_proto(fault: RunFault | None) -> fault_pb2.Fault | None:
    """A run's fault on the wire, with what the table says of its code."""
    if fault is None:
        return None
    full = Fault(
        fault.code,
        fault.message,
        stage=fault.stage,
        node=fault.node or None,
        remedy=fault.remedy,
    )
    full.metadata = dict(fault.metadata)
    return errors.fault_to_proto(full)


def fault_from_proto(proto: fault_pb2.Fault, *, stage: Stage, node: str) -> RunFault:
    """A worker's fault; where and on which node it happened is not taken from its word."""
    fault = errors.fault_from_proto(proto)
    entries = sorted(fault.metadata.items())[:METADATA_ENTRIES_MAX]
    metadata = {
        clean(key, limit=METADATA_CHARACTERS_MAX): clean(value, limit=METADATA_CHARACTERS_MAX)
        for key, value in entries
    }
    return RunFault(
        code=fault.code,
        message=clean(fault.message),
        remedy=clean(fault.remedy),
        stage=stage,
        node=node,
        metadata=metadata,
    )


def explanation_to_proto(code: FaultCode) -> fault_service_pb2.FaultExplanation:
    """One row of the table of codes."""
    row = TABLE[code]
    return fault_service_pb2.FaultExplanation(
        code=code.value,
        category=f"CATEGORY_{row.category.value}",
        owner=f"OWNER_{row.owner.value}",
        retryable=row.retryable,
        refundable=row.refundable,
        grpc_status=row.grpc_status,
        meaning=row.meaning,
        remedy=row.remedy,
    )


def clocks_to_proto(reading: Reading) -> run_pb2.RunClocks:
    """The four clocks."""
    return run_pb2.RunClocks(
        wall=duration(reading.wall),
        active=duration(reading.active),
        billable=duration(reading.billable),
        wasted=duration(reading.wasted),
    )


def warning_to_proto(warning: RunWarning) -> run_pb2.RunWarning:
    """One warning."""
    return run_pb2.RunWarning(
        code=warning.code, message=warning.message, time=timestamp(warning.time)
    )


def attempt_to_proto(lease: Lease) -> run_pb2.Attempt:
    """One attempt."""
    return run_pb2.Attempt(
        attempt=lease.attempt,
        node=lease.node,
        lease_time=timestamp(lease.lease_time),
        start_time=timestamp(lease.start_time),
        end_time=timestamp(lease.end_time),
        fault=fault_to_proto(lease.fault),
        resumed_from_step=lease.resumed_from_step,
        fencing_epoch=lease.fencing_epoch,
    )


def run_to_proto(record: Record, *, now: datetime) -> run_pb2.Run:
    """A run as users see it, its clocks read now."""
    run, submission, labels = record.run, record.submission, record.labels
    proto = run_pb2.Run(
        name=run.name,
        state=state_to_proto(run.state),
        stage=errors.stage_to_proto(run.stage),
        spec=parse(spec_pb2.RunSpec, submission.spec),
        snapshot=parse(run_pb2.RunSnapshot, submission.snapshot),
        fault=fault_to_proto(run.fault),
        clocks=clocks_to_proto(reading(run, now)),
        quote=parse(billing_pb2.Quote, submission.quote),
        cost=money(limits.cost_now(run, now)),
        samples=samples_of(run.samples),
        merges=merges_of(run.samples),
        warnings=[warning_to_proto(warning) for warning in record.warnings],
        attempts=[attempt_to_proto(lease) for lease in record.attempts],
        artifact=run.artifact,
        tags=labels.tags,
        display_name=labels.display_name,
        priority=labels.priority,
        submit_time=timestamp(run.submit_time),
        start_time=timestamp(run.start_time),
        end_time=timestamp(run.end_time),
        last_sequence=run.sequence,
        source_run=submission.source_run,
        export_proofs=parse(work_service_pb2.CompleteTaskRequest, run.proofs).export.proofs,
        cancel_request_time=timestamp(run.cancel_request_time),
    )
    if run.metrics is not None:
        proto.metrics.CopyFrom(parse(run_pb2.RunMetrics, run.metrics.document))
    if run.activity is not None:
        proto.activity.CopyFrom(activity_to_proto(run.activity))
    return proto


def activity_to_proto(activity: Activity) -> run_pb2.Activity:
    """What a node does."""
    return run_pb2.Activity(text=activity.text, percent=activity.percent)


def activity_from_proto(proto: run_pb2.Activity) -> Activity:
    """What a node says that it does; a percentage that is none is left out."""
    is_known = proto.HasField("percent") and math.isfinite(proto.percent)
    return Activity(
        text=clean(proto.text, limit=ACTIVITY_CHARACTERS_MAX),
        percent=min(max(proto.percent, 0.0), 100.0) if is_known else None,
    )


def samples_of(document: Document) -> Sequence[run_pb2.Sample]:
    """The samples in a document."""
    return parse(event_pb2.SamplesRecorded, document).samples


def merges_of(document: Document) -> Sequence[run_pb2.RunMerge]:
    """The merge history in a document."""
    return parse(event_pb2.SamplesRecorded, document).merges


def event_to_proto(run_name: str, event: Event, *, traceparent: str) -> event_pb2.Event:
    """An event as it is stored, streamed and published."""
    run_id = run_name.rpartition("/")[2]
    proto = event_pb2.Event(
        event_id=f"{run_id}-{event.sequence}",
        schema_version=SCHEMA_VERSION,
        run=run_name,
        sequence=event.sequence,
        event_time=timestamp(event.time),
        attempt=event.attempt,
        state=state_to_proto(event.state),
        stage=errors.stage_to_proto(event.stage),
        traceparent=traceparent,
    )
    _fill(proto, event.body, at=event.time)
    field = proto.WhichOneof("payload")
    assert field is not None
    proto.type = field
    return proto


def _fill(proto: event_pb2.Event, body: Body, *, at: datetime) -> None:
    match body:
        case RunSubmitted():
            proto.submitted.run.ParseFromString(body.document)
            proto.submitted.SetInParent()
        case StateChanged():
            proto.state_changed.CopyFrom(_state_changed(body))
        case ClockChanged():
            proto.clock_changed.CopyFrom(
                event_pb2.ClockChanged(
                    change=f"CLOCK_CHANGE_{body.change.name}",
                    reason=body.reason,
                    void_from_time=timestamp(body.void_from),
                )
            )
        case Progressed():
            proto.progressed.CopyFrom(_progressed(body))
        case Warned():
            warning = RunWarning(code=body.code, message=body.message, time=at)
            proto.warned.warning.CopyFrom(warning_to_proto(warning))
        case CheckpointCommitted():
            proto.checkpoint_committed.step = body.step
            proto.checkpoint_committed.SetInParent()
        case ArtifactStored():
            proto.artifact_stored.artifact = body.file.artifact
            proto.artifact_stored.file.ParseFromString(body.file.document)
        case SamplesRecorded():
            proto.samples_recorded.ParseFromString(body.samples)
            proto.samples_recorded.SetInParent()
        case ActivityChanged():
            proto.activity_changed.activity.CopyFrom(activity_to_proto(body.activity))
        case Ended():
            proto.ended.CopyFrom(_ended(body))
        case _:
            assert_never(body)


def _state_changed(body: StateChanged) -> event_pb2.RunStateChanged:
    return event_pb2.RunStateChanged(
        from_state=state_to_proto(body.from_state),
        from_stage=errors.stage_to_proto(body.from_stage),
        node=body.node,
        reason=body.reason,
        fault=fault_to_proto(body.fault),
    )


def _progressed(body: Progressed) -> event_pb2.RunProgressed:
    proto = event_pb2.RunProgressed(
        clocks=clocks_to_proto(body.reading), cost=money(body.cost_micros)
    )
    if body.metrics is not None:
        proto.metrics.ParseFromString(body.metrics.document)
    return proto


def _ended(body: Ended) -> event_pb2.RunEnded:
    return event_pb2.RunEnded(
        state=state_to_proto(body.state),
        fault=fault_to_proto(body.fault),
        clocks=clocks_to_proto(body.reading),
        rate_per_minute=money(body.rate_micros_per_minute),
        refundable=body.refundable,
    )


def stored_file(artifact: str, file: artifact_pb2.ArtifactFile) -> StoredFile:
    """A registered artifact file; where it lies is for services only and stays out."""
    public = artifact_pb2.ArtifactFile()
    public.CopyFrom(file)
    public.ClearField("uri")
    return StoredFile(artifact=artifact, document=public.SerializeToString())
