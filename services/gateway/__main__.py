"""The gateway process: gRPC forwarding and the HTTP server, in one."""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import uvicorn
from grpc import aio

from chassis import server, telemetry
from chassis.config import describe, load, split_address
from chassis.tls import Tls, is_loopback, refuse_open_listener
from gateway import http, wire
from gateway.config import Config
from gateway.domain.routes import FORWARDED, OWN, Upstream, table
from gateway.service import FaultService, Forwarder
from lexicon.faults import Fault, FaultCode
from objects.signing import UrlSigner
from objects.store import open_store
from tunesmith.api.fault.v1 import fault_service_pb2_grpc

HTTP_KEEP_ALIVE_SECONDS = 30
HTTP_CONNECTIONS_MAX = 1024
HTTP_DRAIN_SECONDS = 4
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", server.RESPONSE_BYTES_MAX),
    # Only the caller retries calls, as it has the request id.
    ("grpc.enable_retries", 0),
)

log = telemetry.logger(__name__)


async def main() -> None:
    """Serve until a stop is requested."""
    telemetry.start("gateway")
    config = load(Config, os.environ)
    log.info("starting", config=describe(config))
    tls = Tls.load(
        certificate=config.tls_certificate, key=config.tls_key, authority=config.tls_authority
    )
    refuse_open_listener(config.http_listen, tls, signing_key=config.signing_key)
    channels = {upstream: _channel(address, tls) for upstream, address in _addresses(config)}
    web = _web_server(config)

    def register(grpc_server: aio.Server) -> Sequence[str]:
        routes = table(wire.methods())
        grpc_server.add_generic_rpc_handlers((Forwarder(routes, channels),))
        fault_service_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(), grpc_server)
        return [*FORWARDED, *OWN]

    async def serve_http(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(web.serve())
            stopping = tasks.create_task(stop.wait())
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            web.should_exit = True
            stopping.cancel()

    try:
        await server.run_server(
            service="gateway",
            listen=config.listen,
            tls=tls,
            signing_key=config.signing_key,
            register=register,
            background=[serve_http],
        )
    finally:
        for channel in channels.values():
            await channel.close()


class _Web(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own, which stop everything."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


def _addresses(config: Config) -> list[tuple[Upstream, str]]:
    return [
        (Upstream.SCHEDULER, config.scheduler_addr),
        (Upstream.VALIDATOR, config.validator_addr),
        (Upstream.BILLING, config.billing_addr),
        (Upstream.HUB, config.hub_addr),
    ]


def _channel(address: str, tls: Tls | None) -> aio.Channel:
    """A channel to a service; tokens leave this machine over TLS only."""
    if tls is not None:
        return aio.secure_channel(address, tls.channel_credentials(), options=CHANNEL_OPTIONS)
    if not is_loopback(address):
        raise Fault(
            FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
            f"Refusing to send tokens to {address} without TLS.",
            address=address,
        )
    return aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def _web_server(config: Config) -> uvicorn.Server:
    """The HTTP side; it logs no requests, since a signed URL is a credential."""
    try:
        host, port = split_address(config.http_listen)
    except ValueError:
        raise Fault(FaultCode.CONFIG_INVALID, "TUNESMITH_HTTP_LISTEN must be host:port.") from None
    public = (urlsplit(config.public_url).hostname or "").lower()
    app = http.application(
        signer=UrlSigner(config.objects_signing_keys, config.public_url),
        store=open_store(config.objects_url),
        hosts=frozenset({host, "localhost", "127.0.0.1", "::1", public, *config.http_hosts}),
        object_bytes_max=config.object_bytes_max,
    )
    return _Web(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,
            log_config=None,
            lifespan="off",
            server_header=False,
            date_header=False,
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
            limit_concurrency=HTTP_CONNECTIONS_MAX,
            timeout_keep_alive=HTTP_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=HTTP_DRAIN_SECONDS,
        )
    )


if __name__ == "__main__":
    server.main(main)
