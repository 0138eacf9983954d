import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ArtifactKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_KIND_UNSPECIFIED: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_LORA_ADAPTER: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_GGUF_BUNDLE: _ClassVar[ArtifactKind]
    ARTIFACT_KIND_MERGE_HISTORY: _ClassVar[ArtifactKind]
ARTIFACT_KIND_UNSPECIFIED: ArtifactKind
ARTIFACT_KIND_LORA_ADAPTER: ArtifactKind
ARTIFACT_KIND_GGUF_BUNDLE: ArtifactKind
ARTIFACT_KIND_MERGE_HISTORY: ArtifactKind

class Artifact(_message.Message):
    __slots__ = ("name", "run", "base_model", "files", "create_time", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    run: str
    base_model: str
    files: _containers.RepeatedCompositeFieldContainer[ArtifactFile]
    create_time: _timestamp_pb2.Timestamp
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., run: _Optional[str] = ..., base_model: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ArtifactFile, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ArtifactFile(_message.Message):
    __slots__ = ("kind", "quantization", "file_name", "size_bytes", "sha256", "uri", "create_time", "entries")
    KIND_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    kind: ArtifactKind
    quantization: str
    file_name: str
    size_bytes: int
    sha256: str
    uri: str
    create_time: _timestamp_pb2.Timestamp
    entries: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[_Union[ArtifactKind, str]] = ..., quantization: _Optional[str] = ..., file_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., uri: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., entries: _Optional[_Iterable[str]] = ...) -> None: ...

class StorageUsage(_message.Message):
    __slots__ = ("dataset_bytes", "dataset_quota_bytes", "artifact_bytes", "artifact_quota_bytes")
    DATASET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATASET_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    dataset_bytes: int
    dataset_quota_bytes: int
    artifact_bytes: int
    artifact_quota_bytes: int
    def __init__(self, dataset_bytes: _Optional[int] = ..., dataset_quota_bytes: _Optional[int] = ..., artifact_bytes: _Optional[int] = ..., artifact_quota_bytes: _Optional[int] = ...) -> None: ...
