"""The interceptor of every incoming call: authentication, authorisation, decoding and faults.

One interceptor does all of it, because each layer of Python costs a tenth of a call: it checks the
token and the access table before it decodes a byte, decodes within our own limits, binds the run to
the logs, opens the span, and converts every exception into `google.rpc.Status`. A traceback is
never sent.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from chassis import access, identity, postgres, telemetry
from chassis.errors import fault_from_rpc, status_code, to_status, to_trailing_metadata
from lexicon.faults import Fault, FaultCode

log = telemetry.logger(__name__)

# Longest time that a unary call may take; the longest poll is 30 s, the longest check a minute.
CALL_SECONDS_MAX = 120.0
# Far above every field of a request; large data is transferred by signed URLs.
REQUEST_BYTES_MAX = 4 * 1024 * 1024
_TRACE_KEYS = frozenset({"traceparent", "tracestate"})


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """The interceptor of every server.

    Attributes:
        probing: while the server probes its own socket, refusals are not logged.
    """

    def __init__(
        self,
        signing_key: str | None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Create the interceptor.

        Args:
            signing_key: key of the tokens; None refuses everything but health probes.
            clock: now, with zone.
        """
        self.probing = False
        self._signing_key = signing_key
        self._clock = clock
        self._duration = telemetry.meter().create_histogram(
            "rpc.server.duration", unit="ms", description="Time to answer a call."
        )

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        details: Any,
    ) -> Any:
        """The handler of a call, wrapped."""
        handler = await continuation(details)
        method: str = details.method
        if method in access.OPEN and handler is not None:
            return handler
        headers = dict(details.invocation_metadata or ())
        if handler is None:
            return self._refusal(method, headers)
        call = _Call(self, method, headers, handler.request_deserializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                call.unary(handler.unary_unary),
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                call.stream(handler.unary_stream),
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                call.stream(handler.stream_stream, stream_in=True),
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            call.unary(handler.stream_unary, stream_in=True),
            response_serializer=handler.response_serializer,
        )

    def admit(self, method: str, headers: dict[str, Any]) -> identity.Caller:
        """Who calls, when they may.

        Raises:
            Fault: ACCESS_TOKEN_MISSING, ACCESS_TOKEN_INVALID, ACCESS_DENIED.
        """
        token = identity.token_of(headers.get(identity.METADATA_KEY))
        if self._signing_key is None:
            raise Fault(FaultCode.ACCESS_DENIED)
        caller = identity.verify(self._signing_key, token, self._clock())
        access.check(method, caller)
        return caller

    def measured(self, method: str, started: float, status: grpc.StatusCode) -> None:
        """Count a call that has ended."""
        self._duration.record(
            (time.perf_counter() - started) * 1000,
            {"rpc.method": method.lstrip("/"), "rpc.grpc.status_code": status.value[0]},
        )

    def _refusal(self, method: str, headers: dict[str, Any]) -> Any:
        """The answer for a method that does not exist; others get the refusal of their token."""

        async def refuse(_request: bytes, context: Any) -> None:
            fault = Fault(FaultCode.INPUT_METHOD_UNKNOWN, f"There is no method {method}.")
            try:
                self.admit(method, headers)
            except Fault as refused:
                if refused.code is not FaultCode.ACCESS_DENIED:
                    fault = refused
            await abort(context, fault)

        return grpc.unary_unary_rpc_method_handler(refuse)


async def abort(context: Any, fault: Fault) -> None:
    """End the call with the fault; raises, as gRPC's own abort does."""
    status = to_status(fault)
    await context.abort(status_code(fault), status.message, to_trailing_metadata(fault))


class _Call:
    """One call; wraps the handler's four shapes."""

    def __init__(
        self,
        interceptor: ServerInterceptor,
        method: str,
        headers: dict[str, Any],
        deserialize: Callable[[bytes], Any] | None,
    ) -> None:
        self._interceptor = interceptor
        self._method = method
        self._headers = headers
        self._deserialize = deserialize

    def unary(self, behaviour: Callable[..., Any], *, stream_in: bool = False) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            scope = self._scope()
            try:
                message = self._enter(scope, request, stream_in=stream_in)
                async with asyncio.timeout(CALL_SECONDS_MAX):
                    return await behaviour(message, context)
            except Exception as error:  # noqa: BLE001 - the edge, where all become faults.
                await abort(context, scope.failed(error))
            finally:
                scope.end()

        return answer

    def stream(self, behaviour: Callable[..., Any], *, stream_in: bool = False) -> Any:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            scope = self._scope()
            try:
                message = self._enter(scope, request, stream_in=stream_in)
                async with aclosing(_responses(behaviour(message, context))) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:  # noqa: BLE001 - the edge, where all become faults.
                await abort(context, scope.failed(error))
            finally:
                scope.end()

        return answer

    def _enter(self, scope: "_Scope", request: Any, *, stream_in: bool) -> Any:
        identity.enter(self._interceptor.admit(self._method, self._headers))
        if stream_in:
            return self._messages(request)
        message = self._decode(request)
        scope.bind_run(message)
        return message

    async def _messages(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._decode(request)

    def _decode(self, request: bytes) -> Any:
        if len(request) > REQUEST_BYTES_MAX:
            raise Fault(FaultCode.INPUT_MESSAGE_TOO_LARGE, limit_bytes=REQUEST_BYTES_MAX)
        if self._deserialize is None:
            return request
        try:
            return self._deserialize(request)
        except DecodeError as error:
            # The parser fails at a nesting of a hundred without a reason.
            raise Fault(
                FaultCode.INPUT_MESSAGE_TOO_DEEP,
                "The request is not a message of the contract, or is nested too deeply.",
            ) from error

    def _scope(self) -> "_Scope":
        return _Scope(self._method, self._headers, self._interceptor)


class _Scope:
    """State of a call while it is answered: its span, its run, how it ended.

    Span and run are set for the task of the call and never reset: every call has a task of its
    own, and a stream that its client left is closed in another task.
    """

    def __init__(
        self,
        method: str,
        headers: Mapping[str, Any],
        interceptor: ServerInterceptor,
    ) -> None:
        self._method = method
        self._interceptor = interceptor
        self._status = grpc.StatusCode.OK
        self._run = ""
        self._started = time.perf_counter()
        carrier = {key: value for key, value in headers.items() if key in _TRACE_KEYS}
        self._span = telemetry.tracer().start_span(
            method.lstrip("/"),
            context=propagate.extract(carrier, otel_context.Context()),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc"},
        )
        otel_context.attach(trace.set_span_in_context(self._span))

    def bind_run(self, message: Any) -> None:
        """Add the run that the request names to logs and span."""
        for field in ("run", "name"):
            value = getattr(message, field, None)
            if isinstance(value, str) and "/runs/" in value:
                self._run = value[:256]
                structlog.contextvars.bind_contextvars(run=self._run)
                self._span.set_attribute("tunesmith.run", self._run)
                return

    def failed(self, error: Exception) -> Fault:
        """The fault for the caller; an unexpected error is logged here, once.

        Raises:
            grpc.aio.AbortError: the handler has aborted the call itself.
        """
        if isinstance(error, grpc.aio.AbortError):
            raise error
        fault = self._fault_of(error)
        self._status = status_code(fault)
        self._span.set_attribute("rpc.grpc.status_code", self._status.value[0])
        self._span.set_attribute("tunesmith.fault", fault.code.value)
        self._span.set_status(trace.StatusCode.ERROR, fault.code.value)
        return fault

    def end(self) -> None:
        """Close the span and count the call."""
        self._interceptor.measured(self._method, self._started, self._status)
        self._span.end()

    def _fault_of(self, error: Exception) -> Fault:
        if isinstance(error, Fault):
            if not self._interceptor.probing:
                code = error.code.value
                log.info("call refused", method=self._method, code=code, reason=error.message)
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            fault = fault_from_rpc(error)
            log.warning("call behind failed", method=self._method, code=fault.code.value)
            return fault
        if isinstance(error, NotImplementedError):
            # A generated servicer raises this for a method that its subclass leaves out.
            return Fault(FaultCode.INPUT_METHOD_UNKNOWN)
        if postgres.is_outage(error):
            reason = f"{type(error).__name__}: {error}"
            log.warning("dependency away", method=self._method, reason=reason)
            return Fault(FaultCode.DEP_SERVICE_UNAVAILABLE)
        log.error("unexpected", method=self._method, exc_info=error)
        return unexpected(run=self._run)


def unexpected(*, run: str = "") -> Fault:
    """The fault of an internal error: it names the log entry and nothing else."""
    fault = Fault(FaultCode.INTERNAL_UNEXPECTED)
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        fault.metadata["trace_id"] = trace.format_trace_id(context.trace_id)
    if run:
        fault.metadata["run"] = run
        fault.message = f"Something unexpected happened inside the platform (run {run})."
    return fault


async def _responses(started: Any) -> AsyncGenerator[Any, None]:
    """The responses of a handler that yields them; one that writes them itself yields none."""
    if hasattr(started, "__aiter__"):
        async with aclosing(started):
            async for response in started:
                yield response
    else:
        await started


def methods_of(services: Sequence[str], known: Sequence[str]) -> list[str]:
    """The methods of these services among the known ones."""
    prefixes = tuple(f"/{service}/" for service in services)
    return [method for method in known if method.startswith(prefixes)]
