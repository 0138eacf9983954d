from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FaultExplanation(_message.Message):
    __slots__ = ("code", "category", "owner", "retryable", "refundable", "grpc_status", "meaning", "remedy")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    REFUNDABLE_FIELD_NUMBER: _ClassVar[int]
    GRPC_STATUS_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    code: str
    category: _fault_pb2.Category
    owner: _fault_pb2.Owner
    retryable: bool
    refundable: bool
    grpc_status: str
    meaning: str
    remedy: str
    def __init__(self, code: _Optional[str] = ..., category: _Optional[_Union[_fault_pb2.Category, str]] = ..., owner: _Optional[_Union[_fault_pb2.Owner, str]] = ..., retryable: _Optional[bool] = ..., refundable: _Optional[bool] = ..., grpc_status: _Optional[str] = ..., meaning: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class ExplainFaultRequest(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    def __init__(self, code: _Optional[str] = ...) -> None: ...

class ExplainFaultResponse(_message.Message):
    __slots__ = ("explanation",)
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    explanation: FaultExplanation
    def __init__(self, explanation: _Optional[_Union[FaultExplanation, _Mapping]] = ...) -> None: ...

class ListFaultsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFaultsResponse(_message.Message):
    __slots__ = ("explanations", "next_page_token")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedCompositeFieldContainer[FaultExplanation]
    next_page_token: str
    def __init__(self, explanations: _Optional[_Iterable[_Union[FaultExplanation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
