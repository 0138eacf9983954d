"""The gateway's gRPC server: it forwards calls as bytes and answers about the fault table.

The caller's own token is forwarded, and the service behind verifies it again: no header exists by
which the gateway could vouch for a caller.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc import aio

from chassis import identity, telemetry
from chassis.errors import DETAILS_KEY, fault_from_rpc, to_status
from gateway import wire
from gateway.domain.routes import Route, Upstream
from lexicon.faults import TABLE, Fault, FaultCode
from tunesmith.api.fault.v1 import fault_service_pb2, fault_service_pb2_grpc

# Deadlines for callers without one: two minutes for an answer, a day for a watch.
UNARY_SECONDS = 120.0
STREAM_SECONDS = 24 * 3600.0
FAULTS_PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000

log = telemetry.logger(__name__)


class Forwarder(grpc.GenericRpcHandler):
    """Forwards every routed method to the service that owns it."""

    def __init__(
        self, routes: Mapping[str, Route], channels: Mapping[Upstream, aio.Channel]
    ) -> None:
        self._handlers = {
            path: _streaming(path, route, channels[route.upstream])
            if route.streams
            else _unary(path, route, channels[route.upstream])
            for path, route in routes.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; None for one that is not forwarded."""
        return self._handlers.get(handler_call_details.method)


class FaultService(fault_service_pb2_grpc.FaultServiceServicer):
    """Explains the stable codes."""

    async def ExplainFault(
        self,
        request: fault_service_pb2.ExplainFaultRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> fault_service_pb2.ExplainFaultResponse:
        """One row of the table."""
        try:
            code = FaultCode(request.code.strip().upper())
            row = TABLE[code]
        except (ValueError, KeyError):
            raise Fault(
                FaultCode.INPUT_FAULT_UNKNOWN, f"There is no code {request.code[:63]!r}."
            ) from None
        return fault_service_pb2.ExplainFaultResponse(explanation=wire.explanation(code, row))

    async def ListFaults(
        self,
        request: fault_service_pb2.ListFaultsRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> fault_service_pb2.ListFaultsResponse:
        """A page of the table; its token is the last code shown."""
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            raise Fault(FaultCode.INPUT_FIELD_INVALID, f"page_size must be 1 to {PAGE_SIZE_MAX}.")
        codes = sorted(TABLE, key=lambda code: code.value)
        if request.page_token and request.page_token not in {code.value for code in codes}:
            raise Fault(FaultCode.INPUT_PAGE_TOKEN_INVALID)
        rest = [code for code in codes if code.value > request.page_token]
        page = rest[: request.page_size or FAULTS_PAGE_SIZE]
        return fault_service_pb2.ListFaultsResponse(
            explanations=[wire.explanation(code, TABLE[code]) for code in page],
            next_page_token=page[-1].value if len(page) < len(rest) else "",
        )


def _unary(path: str, route: Route, channel: aio.Channel) -> Any:
    ask: Any = channel.unary_unary(path)

    async def answer(request: bytes, context: aio.ServicerContext[bytes, bytes]) -> Any:
        call = ask(
            request,
            timeout=_remaining(context, longest=UNARY_SECONDS),
            metadata=_passed_on(context),
        )
        try:
            return await call
        except aio.AioRpcError as error:
            await _refuse(context, error, route)

    return grpc.unary_unary_rpc_method_handler(answer)


def _streaming(path: str, route: Route, channel: aio.Channel) -> Any:
    ask: Any = channel.unary_stream(path)

    async def answer(
        request: bytes, context: aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        call = ask(
            request,
            timeout=_remaining(context, longest=STREAM_SECONDS),
            metadata=_passed_on(context),
        )
        try:
            async for response in call:
                yield response
        except aio.AioRpcError as error:
            await _refuse(context, error, route)
        finally:
            # End the stream to the service when the caller has disconnected.
            call.cancel()

    return grpc.unary_stream_rpc_method_handler(answer)


async def _refuse(
    context: aio.ServicerContext[bytes, bytes], error: aio.AioRpcError, route: Route
) -> None:
    """Return the service's answer with its `google.rpc.Status` unchanged.

    An answer without one comes from the transport, and its text names internal addresses; so a
    fault of our own replaces it, with the status of the call.
    """
    trailing = error.trailing_metadata() or ()
    details = [(key, value) for key, value in trailing if key == DETAILS_KEY]
    if details:
        await context.abort(error.code(), error.details() or "", tuple(details))
    fault = fault_from_rpc(error)
    fault.metadata = {"service": route.upstream.value}
    if fault.code is FaultCode.DEP_SERVICE_UNAVAILABLE:
        log.warning("service does not answer", service=route.upstream, status=error.code().name)
    status = to_status(fault, code=error.code())
    await context.abort(error.code(), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _remaining(context: aio.ServicerContext[bytes, bytes], *, longest: float) -> float:
    seconds: float | None = context.time_remaining()
    return longest if seconds is None else min(seconds, longest)


def _passed_on(context: aio.ServicerContext[bytes, bytes]) -> tuple[tuple[str, Any], ...]:
    """The caller's token and our span in its trace; other metadata is not forwarded."""
    pairs = context.invocation_metadata() or ()
    token = [(key, value) for key, value in pairs if key == identity.METADATA_KEY]
    trace = telemetry.traceparent()
    return (*token, ("traceparent", trace)) if trace else tuple(token)
