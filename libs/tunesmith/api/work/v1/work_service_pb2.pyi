import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from tunesmith.api.run.v1 import run_pb2 as _run_pb2
from tunesmith.api.work.v1 import work_pb2 as _work_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Directive(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTIVE_UNSPECIFIED: _ClassVar[Directive]
    DIRECTIVE_CONTINUE: _ClassVar[Directive]
    DIRECTIVE_ABORT: _ClassVar[Directive]
    DIRECTIVE_FINISH: _ClassVar[Directive]
DIRECTIVE_UNSPECIFIED: Directive
DIRECTIVE_CONTINUE: Directive
DIRECTIVE_ABORT: Directive
DIRECTIVE_FINISH: Directive

class RegisterNodeRequest(_message.Message):
    __slots__ = ("incarnation", "node")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    node: _work_pb2.Node
    def __init__(self, incarnation: _Optional[str] = ..., node: _Optional[_Union[_work_pb2.Node, _Mapping]] = ...) -> None: ...

class RegisterNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: _work_pb2.Node
    def __init__(self, node: _Optional[_Union[_work_pb2.Node, _Mapping]] = ...) -> None: ...

class LeaseTaskRequest(_message.Message):
    __slots__ = ("node", "incarnation", "wait_millis", "free_memory_bytes", "warm_models")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MILLIS_FIELD_NUMBER: _ClassVar[int]
    FREE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: str
    wait_millis: int
    free_memory_bytes: int
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[str] = ..., wait_millis: _Optional[int] = ..., free_memory_bytes: _Optional[int] = ..., warm_models: _Optional[_Iterable[str]] = ...) -> None: ...

class LeaseTaskResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _work_pb2.Lease
    def __init__(self, lease: _Optional[_Union[_work_pb2.Lease, _Mapping]] = ...) -> None: ...

class TaskReport(_message.Message):
    __slots__ = ("report_number", "age_millis", "stage", "training_started", "metrics", "warning", "checkpoint", "clock_paused", "samples", "activity")
    REPORT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGE_MILLIS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_STARTED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_PAUSED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    report_number: int
    age_millis: int
    stage: _fault_pb2.Stage
    training_started: TrainingStarted
    metrics: _run_pb2.RunMetrics
    warning: _run_pb2.RunWarning
    checkpoint: CheckpointStored
    clock_paused: ClockPaused
    samples: SamplesTaken
    activity: _run_pb2.Activity
    def __init__(self, report_number: _Optional[int] = ..., age_millis: _Optional[int] = ..., stage: _Optional[_Union[_fault_pb2.Stage, str]] = ..., training_started: _Optional[_Union[TrainingStarted, _Mapping]] = ..., metrics: _Optional[_Union[_run_pb2.RunMetrics, _Mapping]] = ..., warning: _Optional[_Union[_run_pb2.RunWarning, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointStored, _Mapping]] = ..., clock_paused: _Optional[_Union[ClockPaused, _Mapping]] = ..., samples: _Optional[_Union[SamplesTaken, _Mapping]] = ..., activity: _Optional[_Union[_run_pb2.Activity, _Mapping]] = ...) -> None: ...

class TrainingStarted(_message.Message):
    __slots__ = ("from_step", "total_steps")
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    from_step: int
    total_steps: int
    def __init__(self, from_step: _Optional[int] = ..., total_steps: _Optional[int] = ...) -> None: ...

class CheckpointStored(_message.Message):
    __slots__ = ("step", "files", "storing_millis")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    STORING_MILLIS_FIELD_NUMBER: _ClassVar[int]
    step: int
    files: _containers.RepeatedCompositeFieldContainer[_work_pb2.OutputFile]
    storing_millis: int
    def __init__(self, step: _Optional[int] = ..., files: _Optional[_Iterable[_Union[_work_pb2.OutputFile, _Mapping]]] = ..., storing_millis: _Optional[int] = ...) -> None: ...

class SamplesTaken(_message.Message):
    __slots__ = ("samples", "merges")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    samples: _containers.RepeatedCompositeFieldContainer[_run_pb2.Sample]
    merges: _containers.RepeatedCompositeFieldContainer[_run_pb2.RunMerge]
    def __init__(self, samples: _Optional[_Iterable[_Union[_run_pb2.Sample, _Mapping]]] = ..., merges: _Optional[_Iterable[_Union[_run_pb2.RunMerge, _Mapping]]] = ...) -> None: ...

class ClockPaused(_message.Message):
    __slots__ = ("paused", "reason")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    reason: str
    def __init__(self, paused: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class HeartbeatTaskRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch", "reports", "temperature_celsius")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    reports: _containers.RepeatedCompositeFieldContainer[TaskReport]
    temperature_celsius: float
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[TaskReport, _Mapping]]] = ..., temperature_celsius: _Optional[float] = ...) -> None: ...

class HeartbeatTaskResponse(_message.Message):
    __slots__ = ("directive", "expire_time", "acknowledged_report_number", "reason")
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_REPORT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    directive: Directive
    expire_time: _timestamp_pb2.Timestamp
    acknowledged_report_number: int
    reason: str
    def __init__(self, directive: _Optional[_Union[Directive, str]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., acknowledged_report_number: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SignInputsRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ...) -> None: ...

class SignInputsResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[_work_pb2.InputFile]
    def __init__(self, files: _Optional[_Iterable[_Union[_work_pb2.InputFile, _Mapping]]] = ...) -> None: ...

class SignOutputsRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch", "files")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    files: _containers.RepeatedCompositeFieldContainer[_work_pb2.OutputFile]
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ..., files: _Optional[_Iterable[_Union[_work_pb2.OutputFile, _Mapping]]] = ...) -> None: ...

class SignedOutput(_message.Message):
    __slots__ = ("path", "uri", "url")
    PATH_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    path: str
    uri: str
    url: str
    def __init__(self, path: _Optional[str] = ..., uri: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class SignOutputsResponse(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SignedOutput]
    def __init__(self, outputs: _Optional[_Iterable[_Union[SignedOutput, _Mapping]]] = ...) -> None: ...

class TrainResult(_message.Message):
    __slots__ = ("metrics", "samples", "merges")
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    metrics: _run_pb2.RunMetrics
    samples: _containers.RepeatedCompositeFieldContainer[_run_pb2.Sample]
    merges: _containers.RepeatedCompositeFieldContainer[_run_pb2.RunMerge]
    def __init__(self, metrics: _Optional[_Union[_run_pb2.RunMetrics, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[_run_pb2.Sample, _Mapping]]] = ..., merges: _Optional[_Iterable[_Union[_run_pb2.RunMerge, _Mapping]]] = ...) -> None: ...

class ExportResult(_message.Message):
    __slots__ = ("proofs",)
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    proofs: _containers.RepeatedCompositeFieldContainer[_run_pb2.ExportProof]
    def __init__(self, proofs: _Optional[_Iterable[_Union[_run_pb2.ExportProof, _Mapping]]] = ...) -> None: ...

class CompleteTaskRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch", "outputs", "train", "export", "reports")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    outputs: _containers.RepeatedCompositeFieldContainer[_work_pb2.OutputFile]
    train: TrainResult
    export: ExportResult
    reports: _containers.RepeatedCompositeFieldContainer[TaskReport]
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_work_pb2.OutputFile, _Mapping]]] = ..., train: _Optional[_Union[TrainResult, _Mapping]] = ..., export: _Optional[_Union[ExportResult, _Mapping]] = ..., reports: _Optional[_Iterable[_Union[TaskReport, _Mapping]]] = ...) -> None: ...

class CompleteTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FailTaskRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch", "fault", "reports")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    fault: _fault_pb2.Fault
    reports: _containers.RepeatedCompositeFieldContainer[TaskReport]
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., reports: _Optional[_Iterable[_Union[TaskReport, _Mapping]]] = ...) -> None: ...

class FailTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseTaskRequest(_message.Message):
    __slots__ = ("lease_id", "fencing_epoch")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    fencing_epoch: int
    def __init__(self, lease_id: _Optional[str] = ..., fencing_epoch: _Optional[int] = ...) -> None: ...

class ReleaseTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_work_pb2.Node]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[_work_pb2.Node, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
