import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.artifact.v1 import artifact_pb2 as _artifact_pb2
from tunesmith.api.billing.v1 import billing_pb2 as _billing_pb2
from tunesmith.api.export.v1 import export_pb2 as _export_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from tunesmith.api.run.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClockChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOCK_CHANGE_UNSPECIFIED: _ClassVar[ClockChange]
    CLOCK_CHANGE_STARTED: _ClassVar[ClockChange]
    CLOCK_CHANGE_PAUSED: _ClassVar[ClockChange]
    CLOCK_CHANGE_RESUMED: _ClassVar[ClockChange]
    CLOCK_CHANGE_STOPPED: _ClassVar[ClockChange]
    CLOCK_CHANGE_VOIDED: _ClassVar[ClockChange]
CLOCK_CHANGE_UNSPECIFIED: ClockChange
CLOCK_CHANGE_STARTED: ClockChange
CLOCK_CHANGE_PAUSED: ClockChange
CLOCK_CHANGE_RESUMED: ClockChange
CLOCK_CHANGE_STOPPED: ClockChange
CLOCK_CHANGE_VOIDED: ClockChange

class Event(_message.Message):
    __slots__ = ("event_id", "schema_version", "run", "sequence", "event_time", "attempt", "state", "stage", "traceparent", "type", "submitted", "state_changed", "clock_changed", "progressed", "warned", "checkpoint_committed", "artifact_stored", "samples_recorded", "ended", "export_changed", "activity_changed")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PROGRESSED_FIELD_NUMBER: _ClassVar[int]
    WARNED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_STORED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_RECORDED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    EXPORT_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    schema_version: int
    run: str
    sequence: int
    event_time: _timestamp_pb2.Timestamp
    attempt: int
    state: _run_pb2.RunState
    stage: _fault_pb2.Stage
    traceparent: str
    type: str
    submitted: RunSubmitted
    state_changed: RunStateChanged
    clock_changed: ClockChanged
    progressed: RunProgressed
    warned: RunWarned
    checkpoint_committed: CheckpointCommitted
    artifact_stored: ArtifactStored
    samples_recorded: SamplesRecorded
    ended: RunEnded
    export_changed: ExportChanged
    activity_changed: ActivityChanged
    def __init__(self, event_id: _Optional[str] = ..., schema_version: _Optional[int] = ..., run: _Optional[str] = ..., sequence: _Optional[int] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[_run_pb2.RunState, str]] = ..., stage: _Optional[_Union[_fault_pb2.Stage, str]] = ..., traceparent: _Optional[str] = ..., type: _Optional[str] = ..., submitted: _Optional[_Union[RunSubmitted, _Mapping]] = ..., state_changed: _Optional[_Union[RunStateChanged, _Mapping]] = ..., clock_changed: _Optional[_Union[ClockChanged, _Mapping]] = ..., progressed: _Optional[_Union[RunProgressed, _Mapping]] = ..., warned: _Optional[_Union[RunWarned, _Mapping]] = ..., checkpoint_committed: _Optional[_Union[CheckpointCommitted, _Mapping]] = ..., artifact_stored: _Optional[_Union[ArtifactStored, _Mapping]] = ..., samples_recorded: _Optional[_Union[SamplesRecorded, _Mapping]] = ..., ended: _Optional[_Union[RunEnded, _Mapping]] = ..., export_changed: _Optional[_Union[ExportChanged, _Mapping]] = ..., activity_changed: _Optional[_Union[ActivityChanged, _Mapping]] = ...) -> None: ...

class RunSubmitted(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class RunStateChanged(_message.Message):
    __slots__ = ("from_state", "from_stage", "node", "reason", "fault")
    FROM_STATE_FIELD_NUMBER: _ClassVar[int]
    FROM_STAGE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    from_state: _run_pb2.RunState
    from_stage: _fault_pb2.Stage
    node: str
    reason: str
    fault: _fault_pb2.Fault
    def __init__(self, from_state: _Optional[_Union[_run_pb2.RunState, str]] = ..., from_stage: _Optional[_Union[_fault_pb2.Stage, str]] = ..., node: _Optional[str] = ..., reason: _Optional[str] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ...) -> None: ...

class ClockChanged(_message.Message):
    __slots__ = ("change", "reason", "void_from_time")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VOID_FROM_TIME_FIELD_NUMBER: _ClassVar[int]
    change: ClockChange
    reason: str
    void_from_time: _timestamp_pb2.Timestamp
    def __init__(self, change: _Optional[_Union[ClockChange, str]] = ..., reason: _Optional[str] = ..., void_from_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RunProgressed(_message.Message):
    __slots__ = ("metrics", "clocks", "cost")
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    metrics: _run_pb2.RunMetrics
    clocks: _run_pb2.RunClocks
    cost: _billing_pb2.Money
    def __init__(self, metrics: _Optional[_Union[_run_pb2.RunMetrics, _Mapping]] = ..., clocks: _Optional[_Union[_run_pb2.RunClocks, _Mapping]] = ..., cost: _Optional[_Union[_billing_pb2.Money, _Mapping]] = ...) -> None: ...

class RunWarned(_message.Message):
    __slots__ = ("warning",)
    WARNING_FIELD_NUMBER: _ClassVar[int]
    warning: _run_pb2.RunWarning
    def __init__(self, warning: _Optional[_Union[_run_pb2.RunWarning, _Mapping]] = ...) -> None: ...

class CheckpointCommitted(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class ArtifactStored(_message.Message):
    __slots__ = ("artifact", "file")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    file: _artifact_pb2.ArtifactFile
    def __init__(self, artifact: _Optional[str] = ..., file: _Optional[_Union[_artifact_pb2.ArtifactFile, _Mapping]] = ...) -> None: ...

class SamplesRecorded(_message.Message):
    __slots__ = ("samples", "merges")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    samples: _containers.RepeatedCompositeFieldContainer[_run_pb2.Sample]
    merges: _containers.RepeatedCompositeFieldContainer[_run_pb2.RunMerge]
    def __init__(self, samples: _Optional[_Iterable[_Union[_run_pb2.Sample, _Mapping]]] = ..., merges: _Optional[_Iterable[_Union[_run_pb2.RunMerge, _Mapping]]] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("state", "fault", "clocks", "rate_per_minute", "refundable")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    REFUNDABLE_FIELD_NUMBER: _ClassVar[int]
    state: _run_pb2.RunState
    fault: _fault_pb2.Fault
    clocks: _run_pb2.RunClocks
    rate_per_minute: _billing_pb2.Money
    refundable: bool
    def __init__(self, state: _Optional[_Union[_run_pb2.RunState, str]] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., clocks: _Optional[_Union[_run_pb2.RunClocks, _Mapping]] = ..., rate_per_minute: _Optional[_Union[_billing_pb2.Money, _Mapping]] = ..., refundable: _Optional[bool] = ...) -> None: ...

class ActivityChanged(_message.Message):
    __slots__ = ("activity",)
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    activity: _run_pb2.Activity
    def __init__(self, activity: _Optional[_Union[_run_pb2.Activity, _Mapping]] = ...) -> None: ...

class ExportChanged(_message.Message):
    __slots__ = ("export",)
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    export: _export_pb2.Export
    def __init__(self, export: _Optional[_Union[_export_pb2.Export, _Mapping]] = ...) -> None: ...
