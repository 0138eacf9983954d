import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AlertReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALERT_REASON_UNSPECIFIED: _ClassVar[AlertReason]
    ALERT_REASON_INTERNAL_FAULT: _ClassVar[AlertReason]
    ALERT_REASON_OOM_REPEATED: _ClassVar[AlertReason]
ALERT_REASON_UNSPECIFIED: AlertReason
ALERT_REASON_INTERNAL_FAULT: AlertReason
ALERT_REASON_OOM_REPEATED: AlertReason

class OperatorAlert(_message.Message):
    __slots__ = ("alert_id", "reason", "run", "attempt", "fault", "fingerprint", "earlier_oom_count", "create_time", "traceparent")
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EARLIER_OOM_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    reason: AlertReason
    run: str
    attempt: int
    fault: _fault_pb2.Fault
    fingerprint: str
    earlier_oom_count: int
    create_time: _timestamp_pb2.Timestamp
    traceparent: str
    def __init__(self, alert_id: _Optional[str] = ..., reason: _Optional[_Union[AlertReason, str]] = ..., run: _Optional[str] = ..., attempt: _Optional[int] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., fingerprint: _Optional[str] = ..., earlier_oom_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...
