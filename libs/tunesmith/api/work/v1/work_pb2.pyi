import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.artifact.v1 import artifact_pb2 as _artifact_pb2
from tunesmith.api.dataset.v1 import dataset_pb2 as _dataset_pb2
from tunesmith.api.run.v1 import run_pb2 as _run_pb2
from tunesmith.api.run.v1 import spec_pb2 as _spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_TRAIN: _ClassVar[TaskKind]
    TASK_KIND_EXPORT: _ClassVar[TaskKind]

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_READY: _ClassVar[NodeState]
    NODE_STATE_LEASED: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_LOST: _ClassVar[NodeState]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_TRAIN: TaskKind
TASK_KIND_EXPORT: TaskKind
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_READY: NodeState
NODE_STATE_LEASED: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_LOST: NodeState

class Node(_message.Message):
    __slots__ = ("name", "kind", "tier", "hardware", "memory_bytes", "temperature_celsius", "warm_models", "version", "state", "heartbeat_time", "register_time", "run", "capabilities", "unfit_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIME_FIELD_NUMBER: _ClassVar[int]
    REGISTER_TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    UNFIT_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: TaskKind
    tier: str
    hardware: str
    memory_bytes: int
    temperature_celsius: float
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    version: str
    state: NodeState
    heartbeat_time: _timestamp_pb2.Timestamp
    register_time: _timestamp_pb2.Timestamp
    run: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    unfit_reason: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., tier: _Optional[str] = ..., hardware: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., temperature_celsius: _Optional[float] = ..., warm_models: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., heartbeat_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., register_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., run: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., unfit_reason: _Optional[str] = ...) -> None: ...

class InputFile(_message.Message):
    __slots__ = ("path", "url", "size_bytes", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    url: str
    size_bytes: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., url: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class BaseModelInput(_message.Message):
    __slots__ = ("base_model", "model_id", "revision", "files", "hub_token")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    HUB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    model_id: str
    revision: str
    files: _containers.RepeatedCompositeFieldContainer[InputFile]
    hub_token: str
    def __init__(self, base_model: _Optional[str] = ..., model_id: _Optional[str] = ..., revision: _Optional[str] = ..., files: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ..., hub_token: _Optional[str] = ...) -> None: ...

class DatasetInput(_message.Message):
    __slots__ = ("name", "format", "file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    format: _dataset_pb2.Format
    file: InputFile
    def __init__(self, name: _Optional[str] = ..., format: _Optional[_Union[_dataset_pb2.Format, str]] = ..., file: _Optional[_Union[InputFile, _Mapping]] = ...) -> None: ...

class CheckpointInput(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[InputFile]
    def __init__(self, files: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ...) -> None: ...

class TrainTask(_message.Message):
    __slots__ = ("base", "datasets", "training", "lora", "sample_prompts", "checkpoint", "checkpoint_step", "validation", "earlier_checkpoints")
    BASE_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    EARLIER_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    base: BaseModelInput
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetInput]
    training: _spec_pb2.TrainingConfig
    lora: _spec_pb2.LoraConfig
    sample_prompts: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: _containers.RepeatedCompositeFieldContainer[InputFile]
    checkpoint_step: int
    validation: DatasetInput
    earlier_checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointInput]
    def __init__(self, base: _Optional[_Union[BaseModelInput, _Mapping]] = ..., datasets: _Optional[_Iterable[_Union[DatasetInput, _Mapping]]] = ..., training: _Optional[_Union[_spec_pb2.TrainingConfig, _Mapping]] = ..., lora: _Optional[_Union[_spec_pb2.LoraConfig, _Mapping]] = ..., sample_prompts: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ..., checkpoint_step: _Optional[int] = ..., validation: _Optional[_Union[DatasetInput, _Mapping]] = ..., earlier_checkpoints: _Optional[_Iterable[_Union[CheckpointInput, _Mapping]]] = ...) -> None: ...

class ExportTask(_message.Message):
    __slots__ = ("base", "adapter", "quantizations", "snapshot", "losses")
    BASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATIONS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    base: BaseModelInput
    adapter: _containers.RepeatedCompositeFieldContainer[InputFile]
    quantizations: _containers.RepeatedScalarFieldContainer[str]
    snapshot: _run_pb2.RunSnapshot
    losses: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, base: _Optional[_Union[BaseModelInput, _Mapping]] = ..., adapter: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ..., quantizations: _Optional[_Iterable[str]] = ..., snapshot: _Optional[_Union[_run_pb2.RunSnapshot, _Mapping]] = ..., losses: _Optional[_Iterable[float]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "run", "attempt", "fencing_epoch", "expire_time", "kind", "train", "export", "traceparent", "heartbeat_millis")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MILLIS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    run: str
    attempt: int
    fencing_epoch: int
    expire_time: _timestamp_pb2.Timestamp
    kind: TaskKind
    train: TrainTask
    export: ExportTask
    traceparent: str
    heartbeat_millis: int
    def __init__(self, lease_id: _Optional[str] = ..., run: _Optional[str] = ..., attempt: _Optional[int] = ..., fencing_epoch: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., train: _Optional[_Union[TrainTask, _Mapping]] = ..., export: _Optional[_Union[ExportTask, _Mapping]] = ..., traceparent: _Optional[str] = ..., heartbeat_millis: _Optional[int] = ...) -> None: ...

class OutputFile(_message.Message):
    __slots__ = ("path", "uri", "size_bytes", "sha256", "artifact_kind", "quantization", "entries")
    PATH_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_KIND_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    path: str
    uri: str
    size_bytes: int
    sha256: str
    artifact_kind: _artifact_pb2.ArtifactKind
    quantization: str
    entries: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., uri: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., artifact_kind: _Optional[_Union[_artifact_pb2.ArtifactKind, str]] = ..., quantization: _Optional[str] = ..., entries: _Optional[_Iterable[str]] = ...) -> None: ...
