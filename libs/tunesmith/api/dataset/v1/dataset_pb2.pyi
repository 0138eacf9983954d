import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_UNSPECIFIED: _ClassVar[Format]
    FORMAT_MESSAGES: _ClassVar[Format]
    FORMAT_CONVERSATIONS: _ClassVar[Format]
    FORMAT_INSTRUCTION: _ClassVar[Format]
    FORMAT_PROMPT_COMPLETION: _ClassVar[Format]
    FORMAT_INPUT_OUTPUT: _ClassVar[Format]
    FORMAT_TEXT: _ClassVar[Format]
    FORMAT_PREFERENCE: _ClassVar[Format]
    FORMAT_KTO: _ClassVar[Format]
FORMAT_UNSPECIFIED: Format
FORMAT_MESSAGES: Format
FORMAT_CONVERSATIONS: Format
FORMAT_INSTRUCTION: Format
FORMAT_PROMPT_COMPLETION: Format
FORMAT_INPUT_OUTPUT: Format
FORMAT_TEXT: Format
FORMAT_PREFERENCE: Format
FORMAT_KTO: Format

class Dataset(_message.Message):
    __slots__ = ("name", "display_name", "latest", "version_count", "create_time", "delete_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DELETE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    latest: DatasetVersion
    version_count: int
    create_time: _timestamp_pb2.Timestamp
    delete_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., latest: _Optional[_Union[DatasetVersion, _Mapping]] = ..., version_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delete_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DatasetVersion(_message.Message):
    __slots__ = ("name", "version", "format", "row_count", "size_bytes", "sha256", "file_name", "create_time", "stats", "uri")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    format: Format
    row_count: int
    size_bytes: int
    sha256: str
    file_name: str
    create_time: _timestamp_pb2.Timestamp
    stats: DatasetStats
    uri: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., format: _Optional[_Union[Format, str]] = ..., row_count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., file_name: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stats: _Optional[_Union[DatasetStats, _Mapping]] = ..., uri: _Optional[str] = ...) -> None: ...

class DatasetStats(_message.Message):
    __slots__ = ("row_count", "duplicate_row_count", "character_count", "longest_row_characters", "longest_row_number", "multi_turn_row_count")
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    LONGEST_ROW_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_ROW_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MULTI_TURN_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    row_count: int
    duplicate_row_count: int
    character_count: int
    longest_row_characters: int
    longest_row_number: int
    multi_turn_row_count: int
    def __init__(self, row_count: _Optional[int] = ..., duplicate_row_count: _Optional[int] = ..., character_count: _Optional[int] = ..., longest_row_characters: _Optional[int] = ..., longest_row_number: _Optional[int] = ..., multi_turn_row_count: _Optional[int] = ...) -> None: ...

class PreviewRow(_message.Message):
    __slots__ = ("row_number", "rendered_text", "trained_spans", "token_count", "trained_token_count", "truncated")
    ROW_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RENDERED_TEXT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_SPANS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    row_number: int
    rendered_text: str
    trained_spans: _containers.RepeatedCompositeFieldContainer[TrainedSpan]
    token_count: int
    trained_token_count: int
    truncated: bool
    def __init__(self, row_number: _Optional[int] = ..., rendered_text: _Optional[str] = ..., trained_spans: _Optional[_Iterable[_Union[TrainedSpan, _Mapping]]] = ..., token_count: _Optional[int] = ..., trained_token_count: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...

class TrainedSpan(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...
