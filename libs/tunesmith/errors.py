"""Exceptions of refused calls: each has a stable code, with one class per kind of answer."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from lexicon.faults import TABLE, FaultCode
from tunesmith.api.fault.v1 import fault_pb2

DETAILS_KEY = "grpc-status-details-bin"


class TunesmithError(Exception):
    """A call or a run that did not succeed.

    Attributes:
        code: stable code, for example `DATASET_NOT_FOUND`.
        message: what happened, in a sentence.
        remedy: what to do about it.
        metadata: numbers and names of the message, by key.
        status: name of the gRPC status, for example `NOT_FOUND`; empty without a call.
        retryable: whether the same request may succeed when it is made again.
    """

    exit_code = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str = "",
        metadata: dict[str, str] | None = None,
        status: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy or remedy_of(code)
        self.metadata = metadata or {}
        self.status = status
        self.retryable = retryable

    def __str__(self) -> str:
        """Code, sentence and next step."""
        return f"{self.code}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


class InputError(TunesmithError):
    """The request or what it names is not acceptable."""

    exit_code = 3


class NotFoundError(TunesmithError):
    """What the request names does not exist."""

    exit_code = 4


class AccessError(TunesmithError):
    """The caller is unknown, or has no permission."""

    exit_code = 5


class ConflictError(TunesmithError):
    """The state of the platform does not allow this now: an ended run, too little credit."""

    exit_code = 6


class LimitError(TunesmithError):
    """A quota or a limit is reached."""

    exit_code = 7


class UnavailableError(TunesmithError):
    """The platform was not reached, or did not answer in time."""

    exit_code = 8


class RunFailedError(TunesmithError):
    """A watched run or export failed."""

    exit_code = 9


# The one table from a status on the wire to the exception that a caller catches.
BY_STATUS: dict[grpc.StatusCode, type[TunesmithError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.OUT_OF_RANGE: InputError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
}


def from_rpc(error: grpc.RpcError) -> TunesmithError:
    """The exception for a failed call, from its `google.rpc.Status` where it carries one."""
    status = status_of(error)
    kind = BY_STATUS.get(status, TunesmithError)
    text = _details(error) or status.name
    code, remedy, metadata, retryable = _bare_code(status), "", dict[str, str](), False
    packed = _status_message(error)
    if packed is not None:
        text = packed.message or text
        for detail in packed.details:
            info, fault = error_details_pb2.ErrorInfo(), fault_pb2.Fault()
            if detail.Unpack(info) and info.domain == "tunesmith":
                code, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(fault):
                code, remedy, retryable = fault.code, fault.remedy, fault.retryable
                metadata = dict(fault.metadata)
    remedy = remedy or metadata.pop("remedy", "")
    return kind(
        code, text, remedy=remedy, metadata=metadata, status=status.name, retryable=retryable
    )


def from_fault(fault: fault_pb2.Fault) -> RunFailedError:
    """The exception for the fault of a failed run."""
    return RunFailedError(
        fault.code,
        fault.message,
        remedy=fault.remedy,
        metadata=dict(fault.metadata),
        retryable=fault.retryable,
    )


def status_of(error: grpc.RpcError) -> grpc.StatusCode:
    """Status of a failed call; UNKNOWN where the transport gave none."""
    code = getattr(error, "code", None)
    found = code() if callable(code) else None
    return found if isinstance(found, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def is_from_platform(error: grpc.RpcError) -> bool:
    """Whether the platform gave this answer, instead of the transport or a proxy."""
    return _status_message(error) is not None


def remedy_of(code: str) -> str:
    """What the table of codes advises; empty for a code that this version does not know."""
    try:
        return TABLE[FaultCode(code)].remedy
    except (KeyError, ValueError):
        return ""


def _bare_code(status: grpc.StatusCode) -> str:
    """Code for an answer without one, which a proxy or the transport gave."""
    match status:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return FaultCode.DEP_SERVICE_UNAVAILABLE.value
        case grpc.StatusCode.UNAUTHENTICATED:
            return FaultCode.ACCESS_TOKEN_INVALID.value
        case grpc.StatusCode.PERMISSION_DENIED:
            return FaultCode.ACCESS_DENIED.value
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return FaultCode.INPUT_MESSAGE_TOO_LARGE.value
        case grpc.StatusCode.UNIMPLEMENTED:
            return FaultCode.INPUT_METHOD_UNKNOWN.value
        case _:
            return FaultCode.INTERNAL_UNEXPECTED.value


def _details(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    return text if isinstance(text, str) else ""


def _status_message(error: grpc.RpcError) -> status_pb2.Status | None:
    trailing = getattr(error, "trailing_metadata", None)
    pairs = trailing() if callable(trailing) else None
    for key, value in pairs or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
