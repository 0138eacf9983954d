import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.artifact.v1 import artifact_pb2 as _artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from tunesmith.api.run.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExportState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPORT_STATE_UNSPECIFIED: _ClassVar[ExportState]
    EXPORT_STATE_QUEUED: _ClassVar[ExportState]
    EXPORT_STATE_EXPORTING: _ClassVar[ExportState]
    EXPORT_STATE_COMPLETED: _ClassVar[ExportState]
    EXPORT_STATE_FAILED: _ClassVar[ExportState]
    EXPORT_STATE_CANCELLED: _ClassVar[ExportState]
EXPORT_STATE_UNSPECIFIED: ExportState
EXPORT_STATE_QUEUED: ExportState
EXPORT_STATE_EXPORTING: ExportState
EXPORT_STATE_COMPLETED: ExportState
EXPORT_STATE_FAILED: ExportState
EXPORT_STATE_CANCELLED: ExportState

class Export(_message.Message):
    __slots__ = ("name", "artifact", "run", "base_model", "quantization", "state", "attempt", "node", "fault", "proof", "file", "create_time", "update_time", "end_time", "activity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    artifact: str
    run: str
    base_model: str
    quantization: str
    state: ExportState
    attempt: int
    node: str
    fault: _fault_pb2.Fault
    proof: _run_pb2.ExportProof
    file: _artifact_pb2.ArtifactFile
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    activity: _run_pb2.Activity
    def __init__(self, name: _Optional[str] = ..., artifact: _Optional[str] = ..., run: _Optional[str] = ..., base_model: _Optional[str] = ..., quantization: _Optional[str] = ..., state: _Optional[_Union[ExportState, str]] = ..., attempt: _Optional[int] = ..., node: _Optional[str] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., proof: _Optional[_Union[_run_pb2.ExportProof, _Mapping]] = ..., file: _Optional[_Union[_artifact_pb2.ArtifactFile, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., activity: _Optional[_Union[_run_pb2.Activity, _Mapping]] = ...) -> None: ...
