"""Calling another service: a channel that retries, has deadlines, and raises faults again."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from opentelemetry import propagate, trace

from chassis import identity, telemetry
from chassis.errors import fault_from_rpc
from chassis.tls import Tls, is_loopback
from lexicon.faults import Fault, FaultCode

DEADLINE_SECONDS = 30.0
RESPONSE_BYTES_MAX = 16 * 1024 * 1024
RETRY_ATTEMPTS_MAX = 5

# Every mutation carries a request id, so that repeating a call that may have been done is safe.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": RETRY_ATTEMPTS_MAX,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    # A peer that vanished without closing its connection is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # After a restart of the peer the next try must not wait for a minute's backoff.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def connect(
    address: str,
    *,
    token: Callable[[], str] | None,
    tls: Tls | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> grpc.aio.Channel:
    """A channel to another service; it connects when it is first used.

    A failed call raises Fault, with the code that the other side gave; trouble with the connection
    is DEP_SERVICE_UNAVAILABLE. Unary calls wait for a peer that is starting, within the deadline.

    Args:
        address: `host:port`.
        token: gives the bearer token of each call; None where callers pass their own metadata.
        tls: certificates; required unless the address is loopback, so that no token travels in the
            clear.
        deadline_seconds: deadline of unary calls that bring none.
    Raises:
        Fault: RUNTIME_AUTH_NOT_ENFORCED for an address beyond this machine without TLS.
    """
    interceptors = (_Unary(token, deadline_seconds), _Stream(token))
    if tls is not None:
        return grpc.aio.secure_channel(
            address, tls.channel_credentials(), options=_OPTIONS, interceptors=interceptors
        )
    if not is_loopback(address):
        raise Fault(
            FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
            f"Refusing to send tokens to {address} without TLS.",
            address=address,
        )
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: Callable[[], str] | None, deadline_seconds: float) -> None:
        self._token = token
        self._deadline_seconds = deadline_seconds

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        with _span(details) as span:
            try:
                call = await continuation(
                    _prepared(details, self._token, deadline_seconds=self._deadline_seconds),
                    request,
                )
                return await call
            except grpc.aio.AioRpcError as error:
                raise _fault_of(error, span) from error


class _Stream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: Callable[[], str] | None) -> None:
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        call = await continuation(_prepared(details, self._token, deadline_seconds=None), request)
        return _responses(call)


async def _responses(call: Any) -> AsyncIterator[Any]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise fault_from_rpc(error) from error
    finally:
        call.cancel()


def _prepared(
    details: Any, token: Callable[[], str] | None, *, deadline_seconds: float | None
) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if token is not None and metadata.get(identity.METADATA_KEY) is None:
        metadata.add(identity.METADATA_KEY, identity.SCHEME + token())
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    for key, value in carrier.items():
        metadata[key] = value
    wait = details.wait_for_ready
    if wait is None:
        # A stream without a deadline would wait forever.
        wait = deadline_seconds is not None or details.timeout is not None
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=deadline_seconds if details.timeout is None else details.timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=wait,
    )


def _span(details: Any) -> Any:
    method = details.method
    name = method.decode() if isinstance(method, bytes) else str(method)
    return telemetry.tracer().start_as_current_span(
        name.lstrip("/"),
        kind=trace.SpanKind.CLIENT,
        attributes={"rpc.system": "grpc"},
        record_exception=False,
        set_status_on_exception=False,
    )


def _fault_of(error: grpc.aio.AioRpcError, span: trace.Span) -> Fault:
    fault = fault_from_rpc(error)
    span.set_status(trace.StatusCode.ERROR, fault.code.value)
    return fault
