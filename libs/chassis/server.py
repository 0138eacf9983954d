"""A gRPC server process: it refuses to start open, serves, and stops without dropping work."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from chassis import access, interceptor, redaction, telemetry
from chassis.config import split_address
from chassis.tls import Tls, refuse_open_listener
from lexicon.faults import Fault, FaultCode

log = telemetry.logger(__name__)

Background = Callable[[asyncio.Event], Awaitable[None]]

DRAIN_SECONDS = 5.0
PROBE_SECONDS = 10.0
RESPONSE_BYTES_MAX = 16 * 1024 * 1024
METADATA_BYTES_MAX = 16 * 1024
CONCURRENT_CALLS_MAX = 4096
CONCURRENT_STREAMS_MAX = 1024

OPTIONS: tuple[tuple[str, int], ...] = (
    # Twice the interceptor's limit, so that callers see its fault; only a still larger message is
    # refused by the transport, without a code.
    ("grpc.max_receive_message_length", 2 * interceptor.REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
    # Dead peers are found within a minute; clients may ping every ten seconds, also when idle.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Two processes on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
)


async def run_server(
    *,
    service: str,
    listen: str,
    tls: Tls | None,
    signing_key: str | None,
    register: Callable[[grpc.aio.Server], Sequence[str]],
    background: Sequence[Background] = (),
    stop: asyncio.Event | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`.

    Args:
        service: our name, for logs.
        listen: `host:port`; port 0 takes a free one.
        tls: certificates; required unless the host is loopback.
        signing_key: key of the tokens; None for a process that only answers health probes.
        register: adds the servicers and returns the full names of their services.
        background: long tasks; each gets the stop event and returns soon after it is set. One that
            ends earlier or raises ends the process with an error, so that it is started again.
        stop: set to end; default a fresh event that only signals set.
        on_ready: called with the port once calls are answered.
    Raises:
        Fault: RUNTIME_AUTH_NOT_ENFORCED when callers could not be kept out, CONFIG_INVALID when the
            address cannot be bound, INTERNAL_UNEXPECTED when a background task died.
    """
    refuse_open_listener(listen, tls, signing_key=signing_key)
    stopping = stop or asyncio.Event()
    guard = interceptor.ServerInterceptor(signing_key)
    server = _make_server(guard)
    health = health_aio.HealthServicer()
    try:
        names = _register(server, health, register, signing_key=signing_key)
        port = _bind(server, listen, tls)
        await server.start()
        guard.probing = True
        await _probe(port, listen, tls, names)
        guard.probing = False
        with _signals(stopping):
            await _serve(
                service=service,
                health=health,
                names=["", *names],
                port=port,
                background=background,
                stopping=stopping,
                on_ready=on_ready,
            )
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(DRAIN_SECONDS)
        log.info("stopped", service=service)


def main(coroutine_factory: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process to its end; a Fault ends it with one clear line and exit code 1."""
    try:
        uvloop.run(coroutine_factory())
    except Exception as error:
        fault = _first_fault(error)
        if fault is None:
            log.exception("unexpected")
            fault = Fault(FaultCode.INTERNAL_UNEXPECTED, "The process ended; its log says why.")
        _say(f"{fault.code.value}: {fault.message} {fault.remedy}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        telemetry.stop()


def _make_server(guard: interceptor.ServerInterceptor) -> grpc.aio.Server:
    return grpc.aio.server(
        # Handlers are coroutines; the pool is for the few that gRPC runs synchronously.
        migration_thread_pool=ThreadPoolExecutor(max_workers=1),
        interceptors=(guard,),
        options=OPTIONS,
        maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
    )


def _register(
    server: grpc.aio.Server,
    health: health_aio.HealthServicer,
    register: Callable[[grpc.aio.Server], Sequence[str]],
    *,
    signing_key: str | None,
) -> list[str]:
    """Add all servicers and return the names of ours."""
    names = list(register(server))
    if signing_key is None and names:
        raise Fault(
            FaultCode.RUNTIME_AUTH_NOT_ENFORCED, "Services need a signing key to check callers."
        )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if names:
        health_name: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        shown = [*names, health_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(shown, server)
    return names


def _bind(server: grpc.aio.Server, listen: str, tls: Tls | None) -> int:
    """Open the port; the second check whether this is allowed."""
    refuse_open_listener(listen, tls, signing_key=None)
    try:
        if tls is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, tls.server_credentials())
    except RuntimeError as error:
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"Cannot listen on {listen}.",
            remedy="Hint: the port is taken, or the host is not an address of this machine.",
        ) from error
    assert isinstance(port, int)
    return port


async def _probe(port: int, listen: str, tls: Tls | None, names: Sequence[str]) -> None:
    """Call every method on our own socket without a token and check that it is refused."""
    host, _ = split_address(listen)
    target = "127.0.0.1" if host in ("0.0.0.0", "localhost") else host  # noqa: S104
    target = "::1" if target == "::" else target
    address = f"[{target}]:{port}" if ":" in target else f"{target}:{port}"
    options: list[tuple[str, str | int]] = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        options.append(("grpc.ssl_target_name_override", _own_name(tls)))
        channel = grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)
    async with channel:
        for method in interceptor.methods_of(names, sorted(access.ALLOWED)):
            status = await _status_without_token(channel, method)
            if status is not grpc.StatusCode.UNAUTHENTICATED:
                raise Fault(
                    FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
                    f"{method} answered a call without a token ({status.name}).",
                )


async def _status_without_token(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    call: Any = channel.unary_unary(method)
    try:
        await call(b"", timeout=PROBE_SECONDS, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK


def _own_name(tls: Tls) -> str:
    """A name that our certificate is valid for."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(tls.certificate)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return "localhost"
    dns_names: list[str] = found.value.get_values_for_type(x509.DNSName)
    return dns_names[0] if dns_names else "localhost"


async def _serve(
    *,
    service: str,
    health: Any,
    names: Sequence[str],
    port: int,
    background: Sequence[Background],
    stopping: asyncio.Event,
    on_ready: Callable[[int], None] | None,
) -> None:
    tasks = [asyncio.create_task(_run(task, stopping)) for task in background]
    waiting = asyncio.create_task(stopping.wait())
    try:
        for name in names:
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", service=service, port=port)
        if on_ready is not None:
            on_ready(port)
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            for task in done:
                task.result()
            raise Fault(FaultCode.INTERNAL_UNEXPECTED, "A background task ended before its time.")
    finally:
        stopping.set()
        waiting.cancel()
        await _finish(tasks)


async def _run(task: Background, stopping: asyncio.Event) -> None:
    await task(stopping)


async def _finish(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Let the tasks end by themselves, then cancel what is left."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
    for task in late:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            log.error("background task failed", exc_info=result)


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Any:
    """SIGTERM and SIGINT set the event, where this is the main thread."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stopping.set)
    except (ValueError, RuntimeError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _first_fault(error: BaseException) -> Fault | None:
    """The fault itself, or the first one in a group."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            found = _first_fault(part)
            if found is not None:
                return found
    return None


def _say(line: str) -> None:
    sys.stderr.write(redaction.redact(line) + os.linesep)
    sys.stderr.flush()
