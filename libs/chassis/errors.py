"""Faults on the wire: `google.rpc.Status` with ErrorInfo, the Fault, and a readable remedy."""

from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from chassis.redaction import hide_paths, redact
from lexicon.faults import Fault, FaultCode, Stage
from tunesmith.api.fault.v1 import fault_pb2

DOMAIN = "tunesmith"
DETAILS_KEY = "grpc-status-details-bin"
LOCALE = "en"
_CUT = "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """How much of a fault there is room for; texts in bytes of UTF-8."""

    text_bytes: int
    value_bytes: int
    key_bytes: int
    key_count: int


# In a message: a failed tool's last output must fit.
_IN_MESSAGE = _Room(text_bytes=4096, value_bytes=8192, key_bytes=63, key_count=32)
# In trailing metadata, where peers take 8 KiB: it holds everything twice in base64, and the message
# once more with three bytes for each character.
_IN_METADATA = _Room(text_bytes=500, value_bytes=96, key_bytes=63, key_count=8)

# What an answer without our details means: the transport spoke, or something between us.
_BARE: dict[grpc.StatusCode, FaultCode] = {
    grpc.StatusCode.UNAVAILABLE: FaultCode.DEP_SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: FaultCode.DEP_SERVICE_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: FaultCode.DEP_SERVICE_UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: FaultCode.ACCESS_TOKEN_INVALID,
    grpc.StatusCode.PERMISSION_DENIED: FaultCode.ACCESS_DENIED,
    grpc.StatusCode.UNIMPLEMENTED: FaultCode.INPUT_METHOD_UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: FaultCode.INPUT_MESSAGE_TOO_LARGE,
    grpc.StatusCode.INVALID_ARGUMENT: FaultCode.INPUT_FIELD_INVALID,
}


def status_code(fault: Fault) -> grpc.StatusCode:
    """The gRPC status that the table gives for the code."""
    return grpc.StatusCode[fault.row.grpc_status]


def to_status(fault: Fault, *, code: grpc.StatusCode | None = None) -> status_pb2.Status:
    """The fault as `google.rpc.Status`.

    Its details are an ErrorInfo (reason = code, domain `tunesmith`), the contract's own Fault, and
    the remedy as a LocalizedMessage for clients that know neither. Secrets are taken out, and
    so are paths of this machine.

    Args:
        code: status of the call where it is already decided; default that of the table.
    """
    proto = _to_proto(fault, _IN_METADATA)
    number = (code or status_code(fault)).value[0]
    status = status_pb2.Status(code=number, message=proto.message)
    info = error_details_pb2.ErrorInfo(
        reason=proto.code, domain=DOMAIN, metadata=dict(proto.metadata)
    )
    localized = error_details_pb2.LocalizedMessage(locale=LOCALE, message=proto.remedy)
    for detail in (info, proto, localized):
        status.details.add().Pack(detail)
    return status


def to_trailing_metadata(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """The metadata that carries the status beside gRPC's own code and text."""
    return ((DETAILS_KEY, to_status(fault).SerializeToString()),)


def fault_to_proto(fault: Fault) -> fault_pb2.Fault:
    """The fault in the words of the contract, without secrets and paths of this machine."""
    return _to_proto(fault, _IN_MESSAGE)


def fault_from_proto(proto: fault_pb2.Fault) -> Fault:
    """The fault that was sent; a code that this version does not know is INTERNAL_UNEXPECTED."""
    try:
        code = FaultCode(proto.code)
    except ValueError:
        fault = Fault(FaultCode.INTERNAL_UNEXPECTED, proto.message or None, reason=proto.code)
    else:
        fault = Fault(code, proto.message or None, remedy=proto.remedy or None)
        fault.metadata = dict(proto.metadata)
    fault.stage = stage_from_proto(proto.stage)
    fault.node = proto.node or None
    return fault


def fault_from_rpc(error: grpc.RpcError) -> Fault:
    """The fault behind a failed call; trouble with the connection is DEP_SERVICE_UNAVAILABLE."""
    code = _call(error, "code")
    status = _status_of(error)
    for detail in () if status is None else status.details:
        proto = fault_pb2.Fault()
        try:
            found = detail.Unpack(proto)
        except DecodeError:
            break
        if found:
            return fault_from_proto(proto)
    bare = _BARE.get(code, FaultCode.INTERNAL_UNEXPECTED)
    fault = Fault(bare)
    if isinstance(code, grpc.StatusCode):
        fault.metadata["grpc_status"] = code.name
    return fault


def stage_to_proto(stage: Stage | None) -> fault_pb2.Stage:
    """The contract's stage."""
    name = "STAGE_UNSPECIFIED" if stage is None else f"STAGE_{stage.name}"
    return cast(fault_pb2.Stage, fault_pb2.Stage.Value(name))


def stage_from_proto(stage: int) -> Stage | None:
    """Our stage; None for one that is not set or not known to this version."""
    try:
        return Stage[fault_pb2.Stage.Name(stage).removeprefix("STAGE_")]
    except (ValueError, KeyError):
        return None


def _to_proto(fault: Fault, room: _Room) -> fault_pb2.Fault:
    row = fault.row
    shown = sorted(fault.metadata.items())[: room.key_count]
    return fault_pb2.Fault(
        code=fault.code.value,
        category=f"CATEGORY_{row.category.value}",
        stage=stage_to_proto(fault.stage),
        message=_short(fault.message, room.text_bytes),
        remedy=_short(fault.remedy, room.text_bytes),
        retryable=row.retryable,
        refundable=row.refundable,
        metadata={
            _short(key, room.key_bytes): _short(value, room.value_bytes) for key, value in shown
        },
        owner=f"OWNER_{row.owner.value}",
        node=fault.node or "",
    )


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    for key, value in _call(error, "trailing_metadata") or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _call(error: grpc.RpcError, name: str) -> Any:
    found = getattr(error, name, None)
    return found() if callable(found) else None


def _short(text: str, limit_bytes: int) -> str:
    # Lone surrogates, which a dataset may hold, are not UTF-8.
    clean = hide_paths(redact(text)).encode("utf-8", "replace")
    if len(clean) <= limit_bytes:
        return clean.decode("utf-8")
    return clean[: limit_bytes - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT
