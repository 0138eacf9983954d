import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from tunesmith.api.billing.v1 import billing_pb2 as _billing_pb2
from tunesmith.api.dataset.v1 import dataset_pb2 as _dataset_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from tunesmith.api.model.v1 import model_pb2 as _model_pb2
from tunesmith.api.run.v1 import run_pb2 as _run_pb2
from tunesmith.api.run.v1 import spec_pb2 as _spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValidateRunRequest(_message.Message):
    __slots__ = ("parent", "spec", "hub_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    HUB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    spec: _spec_pb2.RunSpec
    hub_token: str
    def __init__(self, parent: _Optional[str] = ..., spec: _Optional[_Union[_spec_pb2.RunSpec, _Mapping]] = ..., hub_token: _Optional[str] = ...) -> None: ...

class ValidateRunResponse(_message.Message):
    __slots__ = ("verdict", "findings", "checklist", "quote", "snapshot", "model", "datasets", "elapsed")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    CHECKLIST_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    verdict: _fault_pb2.Severity
    findings: _containers.RepeatedCompositeFieldContainer[_fault_pb2.Finding]
    checklist: _containers.RepeatedCompositeFieldContainer[CheckItem]
    quote: _billing_pb2.Quote
    snapshot: _run_pb2.RunSnapshot
    model: _model_pb2.Model
    datasets: _containers.RepeatedCompositeFieldContainer[_dataset_pb2.DatasetVersion]
    elapsed: _duration_pb2.Duration
    def __init__(self, verdict: _Optional[_Union[_fault_pb2.Severity, str]] = ..., findings: _Optional[_Iterable[_Union[_fault_pb2.Finding, _Mapping]]] = ..., checklist: _Optional[_Iterable[_Union[CheckItem, _Mapping]]] = ..., quote: _Optional[_Union[_billing_pb2.Quote, _Mapping]] = ..., snapshot: _Optional[_Union[_run_pb2.RunSnapshot, _Mapping]] = ..., model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ..., datasets: _Optional[_Iterable[_Union[_dataset_pb2.DatasetVersion, _Mapping]]] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CheckItem(_message.Message):
    __slots__ = ("check", "passed", "detail")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    check: str
    passed: bool
    detail: str
    def __init__(self, check: _Optional[str] = ..., passed: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class PreviewTrainingRequest(_message.Message):
    __slots__ = ("parent", "spec", "row_count", "hub_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    HUB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    spec: _spec_pb2.RunSpec
    row_count: int
    hub_token: str
    def __init__(self, parent: _Optional[str] = ..., spec: _Optional[_Union[_spec_pb2.RunSpec, _Mapping]] = ..., row_count: _Optional[int] = ..., hub_token: _Optional[str] = ...) -> None: ...

class PreviewTrainingResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[_dataset_pb2.PreviewRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[_dataset_pb2.PreviewRow, _Mapping]]] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("tier", "hardware", "memory_bytes", "rate_per_minute", "plans")
    TIER_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    tier: str
    hardware: str
    memory_bytes: int
    rate_per_minute: _billing_pb2.Money
    plans: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tier: _Optional[str] = ..., hardware: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., rate_per_minute: _Optional[_Union[_billing_pb2.Money, _Mapping]] = ..., plans: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTiersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTiersResponse(_message.Message):
    __slots__ = ("tiers", "next_page_token")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    next_page_token: str
    def __init__(self, tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
