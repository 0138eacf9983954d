import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.billing.v1 import billing_pb2 as _billing_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetAccountRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAccountResponse(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: _billing_pb2.Account
    def __init__(self, account: _Optional[_Union[_billing_pb2.Account, _Mapping]] = ...) -> None: ...

class ListTransactionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "run")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    run: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class ListTransactionsResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_billing_pb2.LedgerEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[_billing_pb2.LedgerEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetReceiptRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetReceiptResponse(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _billing_pb2.Receipt
    def __init__(self, receipt: _Optional[_Union[_billing_pb2.Receipt, _Mapping]] = ...) -> None: ...

class VerifyRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class VerifyRunResponse(_message.Message):
    __slots__ = ("consistent", "recomputed", "differences")
    CONSISTENT_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    consistent: bool
    recomputed: _billing_pb2.Receipt
    differences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, consistent: _Optional[bool] = ..., recomputed: _Optional[_Union[_billing_pb2.Receipt, _Mapping]] = ..., differences: _Optional[_Iterable[str]] = ...) -> None: ...

class GrantCreditsRequest(_message.Message):
    __slots__ = ("request_id", "parent", "amount_micros", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MICROS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    parent: str
    amount_micros: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., parent: _Optional[str] = ..., amount_micros: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GrantCreditsResponse(_message.Message):
    __slots__ = ("entry", "account")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    entry: _billing_pb2.LedgerEntry
    account: _billing_pb2.Account
    def __init__(self, entry: _Optional[_Union[_billing_pb2.LedgerEntry, _Mapping]] = ..., account: _Optional[_Union[_billing_pb2.Account, _Mapping]] = ...) -> None: ...

class SetPlanRequest(_message.Message):
    __slots__ = ("request_id", "parent", "plan")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    parent: str
    plan: str
    def __init__(self, request_id: _Optional[str] = ..., parent: _Optional[str] = ..., plan: _Optional[str] = ...) -> None: ...

class SetPlanResponse(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: _billing_pb2.Account
    def __init__(self, account: _Optional[_Union[_billing_pb2.Account, _Mapping]] = ...) -> None: ...

class HoldFundsRequest(_message.Message):
    __slots__ = ("request_id", "run", "quote", "event_time")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    quote: _billing_pb2.Quote
    event_time: _timestamp_pb2.Timestamp
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., quote: _Optional[_Union[_billing_pb2.Quote, _Mapping]] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class HoldFundsResponse(_message.Message):
    __slots__ = ("entry", "account")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    entry: _billing_pb2.LedgerEntry
    account: _billing_pb2.Account
    def __init__(self, entry: _Optional[_Union[_billing_pb2.LedgerEntry, _Mapping]] = ..., account: _Optional[_Union[_billing_pb2.Account, _Mapping]] = ...) -> None: ...

class ReleaseHoldRequest(_message.Message):
    __slots__ = ("request_id", "run", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseHoldResponse(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: _billing_pb2.LedgerEntry
    def __init__(self, entry: _Optional[_Union[_billing_pb2.LedgerEntry, _Mapping]] = ...) -> None: ...
