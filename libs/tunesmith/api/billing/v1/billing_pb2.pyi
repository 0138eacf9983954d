import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EntryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_KIND_UNSPECIFIED: _ClassVar[EntryKind]
    ENTRY_KIND_GRANT: _ClassVar[EntryKind]
    ENTRY_KIND_HOLD: _ClassVar[EntryKind]
    ENTRY_KIND_CAPTURE: _ClassVar[EntryKind]
    ENTRY_KIND_RELEASE: _ClassVar[EntryKind]
    ENTRY_KIND_REFUND: _ClassVar[EntryKind]
ENTRY_KIND_UNSPECIFIED: EntryKind
ENTRY_KIND_GRANT: EntryKind
ENTRY_KIND_HOLD: EntryKind
ENTRY_KIND_CAPTURE: EntryKind
ENTRY_KIND_RELEASE: EntryKind
ENTRY_KIND_REFUND: EntryKind

class Money(_message.Message):
    __slots__ = ("amount_micros", "currency_code")
    AMOUNT_MICROS_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    amount_micros: int
    currency_code: str
    def __init__(self, amount_micros: _Optional[int] = ..., currency_code: _Optional[str] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("name", "plan", "posted", "held", "available", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    plan: str
    posted: Money
    held: Money
    available: Money
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., plan: _Optional[str] = ..., posted: _Optional[_Union[Money, _Mapping]] = ..., held: _Optional[_Union[Money, _Mapping]] = ..., available: _Optional[_Union[Money, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Quote(_message.Message):
    __slots__ = ("expected", "maximum", "expected_minutes", "maximum_minutes", "rate_per_minute", "export_rate_per_minute", "gpu_tier", "refundable")
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_MINUTES_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_MINUTES_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    EXPORT_RATE_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    GPU_TIER_FIELD_NUMBER: _ClassVar[int]
    REFUNDABLE_FIELD_NUMBER: _ClassVar[int]
    expected: Money
    maximum: Money
    expected_minutes: int
    maximum_minutes: int
    rate_per_minute: Money
    export_rate_per_minute: Money
    gpu_tier: str
    refundable: bool
    def __init__(self, expected: _Optional[_Union[Money, _Mapping]] = ..., maximum: _Optional[_Union[Money, _Mapping]] = ..., expected_minutes: _Optional[int] = ..., maximum_minutes: _Optional[int] = ..., rate_per_minute: _Optional[_Union[Money, _Mapping]] = ..., export_rate_per_minute: _Optional[_Union[Money, _Mapping]] = ..., gpu_tier: _Optional[str] = ..., refundable: _Optional[bool] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("name", "kind", "amount", "debit_account", "credit_account", "run", "reason", "event_time", "post_time", "posting_key", "minutes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    DEBIT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    POST_TIME_FIELD_NUMBER: _ClassVar[int]
    POSTING_KEY_FIELD_NUMBER: _ClassVar[int]
    MINUTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: EntryKind
    amount: Money
    debit_account: str
    credit_account: str
    run: str
    reason: str
    event_time: _timestamp_pb2.Timestamp
    post_time: _timestamp_pb2.Timestamp
    posting_key: str
    minutes: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[EntryKind, str]] = ..., amount: _Optional[_Union[Money, _Mapping]] = ..., debit_account: _Optional[str] = ..., credit_account: _Optional[str] = ..., run: _Optional[str] = ..., reason: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., post_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., posting_key: _Optional[str] = ..., minutes: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("run", "held", "charged", "released", "refunded", "billable_minutes", "billable_millis", "intervals", "entries", "settled")
    RUN_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CHARGED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REFUNDED_FIELD_NUMBER: _ClassVar[int]
    BILLABLE_MINUTES_FIELD_NUMBER: _ClassVar[int]
    BILLABLE_MILLIS_FIELD_NUMBER: _ClassVar[int]
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    run: str
    held: Money
    charged: Money
    released: Money
    refunded: Money
    billable_minutes: int
    billable_millis: int
    intervals: _containers.RepeatedCompositeFieldContainer[Interval]
    entries: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    settled: bool
    def __init__(self, run: _Optional[str] = ..., held: _Optional[_Union[Money, _Mapping]] = ..., charged: _Optional[_Union[Money, _Mapping]] = ..., released: _Optional[_Union[Money, _Mapping]] = ..., refunded: _Optional[_Union[Money, _Mapping]] = ..., billable_minutes: _Optional[int] = ..., billable_millis: _Optional[int] = ..., intervals: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., entries: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ..., settled: _Optional[bool] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("start_time", "end_time", "billable", "reason", "attempt")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    BILLABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    billable: bool
    reason: str
    attempt: int
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., billable: _Optional[bool] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...
