import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.artifact.v1 import artifact_pb2 as _artifact_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObjectMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECT_METHOD_UNSPECIFIED: _ClassVar[ObjectMethod]
    OBJECT_METHOD_GET: _ClassVar[ObjectMethod]
    OBJECT_METHOD_PUT: _ClassVar[ObjectMethod]
OBJECT_METHOD_UNSPECIFIED: ObjectMethod
OBJECT_METHOD_GET: ObjectMethod
OBJECT_METHOD_PUT: ObjectMethod

class ObjectRequest(_message.Message):
    __slots__ = ("uri", "method", "size_bytes")
    URI_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    uri: str
    method: ObjectMethod
    size_bytes: int
    def __init__(self, uri: _Optional[str] = ..., method: _Optional[_Union[ObjectMethod, str]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class SignedObject(_message.Message):
    __slots__ = ("uri", "url", "expire_time")
    URI_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    uri: str
    url: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, uri: _Optional[str] = ..., url: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SignObjectsRequest(_message.Message):
    __slots__ = ("objects",)
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[ObjectRequest]
    def __init__(self, objects: _Optional[_Iterable[_Union[ObjectRequest, _Mapping]]] = ...) -> None: ...

class SignObjectsResponse(_message.Message):
    __slots__ = ("objects",)
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[SignedObject]
    def __init__(self, objects: _Optional[_Iterable[_Union[SignedObject, _Mapping]]] = ...) -> None: ...

class SaidObject(_message.Message):
    __slots__ = ("uri", "size_bytes", "sha256")
    URI_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    uri: str
    size_bytes: int
    sha256: str
    def __init__(self, uri: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class VerifyObjectsRequest(_message.Message):
    __slots__ = ("run", "objects")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    run: str
    objects: _containers.RepeatedCompositeFieldContainer[SaidObject]
    def __init__(self, run: _Optional[str] = ..., objects: _Optional[_Iterable[_Union[SaidObject, _Mapping]]] = ...) -> None: ...

class VerifyObjectsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterArtifactFileRequest(_message.Message):
    __slots__ = ("request_id", "run", "base_model", "file", "existing_only")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    EXISTING_ONLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    base_model: str
    file: _artifact_pb2.ArtifactFile
    existing_only: bool
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., base_model: _Optional[str] = ..., file: _Optional[_Union[_artifact_pb2.ArtifactFile, _Mapping]] = ..., existing_only: _Optional[bool] = ...) -> None: ...

class RegisterArtifactFileResponse(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: _artifact_pb2.Artifact
    def __init__(self, artifact: _Optional[_Union[_artifact_pb2.Artifact, _Mapping]] = ...) -> None: ...

class HoldDatasetVersionsRequest(_message.Message):
    __slots__ = ("request_id", "run", "versions")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ...) -> None: ...

class HoldDatasetVersionsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteRunLeftoversRequest(_message.Message):
    __slots__ = ("request_id", "run", "adapter_uris", "only_uris")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_URIS_FIELD_NUMBER: _ClassVar[int]
    ONLY_URIS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    adapter_uris: _containers.RepeatedScalarFieldContainer[str]
    only_uris: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., adapter_uris: _Optional[_Iterable[str]] = ..., only_uris: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteRunLeftoversResponse(_message.Message):
    __slots__ = ("removed_count", "again_after")
    REMOVED_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGAIN_AFTER_FIELD_NUMBER: _ClassVar[int]
    removed_count: int
    again_after: _duration_pb2.Duration
    def __init__(self, removed_count: _Optional[int] = ..., again_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeleteExportLeftoversRequest(_message.Message):
    __slots__ = ("request_id", "export")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    export: str
    def __init__(self, request_id: _Optional[str] = ..., export: _Optional[str] = ...) -> None: ...

class DeleteExportLeftoversResponse(_message.Message):
    __slots__ = ("removed_count", "again_after")
    REMOVED_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGAIN_AFTER_FIELD_NUMBER: _ClassVar[int]
    removed_count: int
    again_after: _duration_pb2.Duration
    def __init__(self, removed_count: _Optional[int] = ..., again_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
