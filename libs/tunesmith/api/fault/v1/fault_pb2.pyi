from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Category(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CATEGORY_UNSPECIFIED: _ClassVar[Category]
    CATEGORY_OUT_OF_MEMORY: _ClassVar[Category]
    CATEGORY_DATASET_VALIDATION: _ClassVar[Category]
    CATEGORY_UNSUPPORTED_ARCHITECTURE: _ClassVar[Category]
    CATEGORY_TOKENIZATION: _ClassVar[Category]
    CATEGORY_GPU_NODE_LOST: _ClassVar[Category]
    CATEGORY_SUBMISSION_REJECTED: _ClassVar[Category]
    CATEGORY_TRAINING: _ClassVar[Category]
    CATEGORY_EXPORT: _ClassVar[Category]
    CATEGORY_DEPENDENCY: _ClassVar[Category]
    CATEGORY_LIMIT: _ClassVar[Category]
    CATEGORY_INTERNAL: _ClassVar[Category]

class Owner(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OWNER_UNSPECIFIED: _ClassVar[Owner]
    OWNER_USER: _ClassVar[Owner]
    OWNER_PLATFORM: _ClassVar[Owner]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_QUEUED: _ClassVar[Stage]
    STAGE_PROVISIONING: _ClassVar[Stage]
    STAGE_DATA_DOWNLOAD: _ClassVar[Stage]
    STAGE_INITIALIZATION: _ClassVar[Stage]
    STAGE_TRAINING: _ClassVar[Stage]
    STAGE_SAVING: _ClassVar[Stage]
    STAGE_UPLOAD: _ClassVar[Stage]
    STAGE_EXPORTING: _ClassVar[Stage]
    STAGE_DONE: _ClassVar[Stage]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_AMBER: _ClassVar[Severity]
    SEVERITY_RED: _ClassVar[Severity]
CATEGORY_UNSPECIFIED: Category
CATEGORY_OUT_OF_MEMORY: Category
CATEGORY_DATASET_VALIDATION: Category
CATEGORY_UNSUPPORTED_ARCHITECTURE: Category
CATEGORY_TOKENIZATION: Category
CATEGORY_GPU_NODE_LOST: Category
CATEGORY_SUBMISSION_REJECTED: Category
CATEGORY_TRAINING: Category
CATEGORY_EXPORT: Category
CATEGORY_DEPENDENCY: Category
CATEGORY_LIMIT: Category
CATEGORY_INTERNAL: Category
OWNER_UNSPECIFIED: Owner
OWNER_USER: Owner
OWNER_PLATFORM: Owner
STAGE_UNSPECIFIED: Stage
STAGE_QUEUED: Stage
STAGE_PROVISIONING: Stage
STAGE_DATA_DOWNLOAD: Stage
STAGE_INITIALIZATION: Stage
STAGE_TRAINING: Stage
STAGE_SAVING: Stage
STAGE_UPLOAD: Stage
STAGE_EXPORTING: Stage
STAGE_DONE: Stage
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_AMBER: Severity
SEVERITY_RED: Severity

class Fault(_message.Message):
    __slots__ = ("code", "category", "stage", "message", "remedy", "retryable", "refundable", "metadata", "owner", "node")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    REFUNDABLE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    category: Category
    stage: Stage
    message: str
    remedy: str
    retryable: bool
    refundable: bool
    metadata: _containers.ScalarMap[str, str]
    owner: Owner
    node: str
    def __init__(self, code: _Optional[str] = ..., category: _Optional[_Union[Category, str]] = ..., stage: _Optional[_Union[Stage, str]] = ..., message: _Optional[str] = ..., remedy: _Optional[str] = ..., retryable: _Optional[bool] = ..., refundable: _Optional[bool] = ..., metadata: _Optional[_Mapping[str, str]] = ..., owner: _Optional[_Union[Owner, str]] = ..., node: _Optional[str] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("severity", "fault", "field")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    severity: Severity
    fault: Fault
    field: str
    def __init__(self, severity: _Optional[_Union[Severity, str]] = ..., fault: _Optional[_Union[Fault, _Mapping]] = ..., field: _Optional[str] = ...) -> None: ...
