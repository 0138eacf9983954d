"""Nothing listens beyond this machine without TLS and authentication, in two layers."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from chassis import client, identity, interceptor, server
from chassis.identity import Role
from chassis.tls import Tls, is_loopback, refuse_open_listener
from lexicon.faults import Fault, FaultCode
from tests.support.certificates import make_tls
from tests.support.chassis import KEY
from tests.unit.chassis.support import wall_clock
from tests.unit.chassis.test_server import asking, register
from tunesmith.api.event.v1 import event_service_pb2_grpc

OPEN_ADDRESSES = ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "example.com:0", "127.0.0.1.example.com:0"]


def serve(listen: str, *, tls: Tls | None = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {"signing_key": KEY, "register": register, **changes}
    return server.run_server(service="test", listen=listen, tls=tls, **settings)


@pytest.mark.parametrize("listen", OPEN_ADDRESSES)
async def test_an_open_address_without_tls_is_refused(listen: str) -> None:
    """002-28, 002-32: RUNTIME_AUTH_NOT_ENFORCED, and no opt-out."""
    with pytest.raises(Fault) as refused:
        await serve(listen)
    assert refused.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED


@pytest.mark.parametrize("listen", OPEN_ADDRESSES)
def test_the_port_itself_is_refused_too(listen: str) -> None:
    """002-33: who goes round the first layer meets the second."""
    with pytest.raises(Fault) as refused:
        server._bind(None, listen, None)  # type: ignore[arg-type]
    assert refused.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED


@pytest.mark.parametrize("signing_key", ["", None])
async def test_services_without_a_key_to_check_callers_are_refused(signing_key: str | None) -> None:
    """002-28"""
    with pytest.raises(Fault) as refused:
        await serve("127.0.0.1:0", signing_key=signing_key)
    assert refused.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED


async def test_a_server_whose_door_does_not_check_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attack list 8, 002-33: authentication configured, but not enforced, found over the socket."""
    caller = identity.Caller(subject="anybody", role=Role.OPERATOR)
    monkeypatch.setattr(interceptor.ServerInterceptor, "admit", lambda *_: caller)
    with pytest.raises(Fault) as refused:
        await serve("127.0.0.1:0")
    assert refused.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_addresses_need_no_tls(address: str) -> None:
    """002-31"""
    assert is_loopback(address)
    refuse_open_listener(address, None, signing_key=KEY)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "x", ":1", "127.0.0.1:x"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(Fault) as refused:
        refuse_open_listener(address, None, signing_key=KEY)
    assert refused.value.code is FaultCode.CONFIG_INVALID


def test_tokens_do_not_leave_the_machine_in_the_clear() -> None:
    with pytest.raises(Fault) as refused:
        client.connect("10.0.0.1:443", token=lambda: "t")
    assert refused.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED


def test_half_a_set_of_certificates_is_refused(tmp_path: Path) -> None:
    assert Tls.load(certificate=None, key=None, authority=None) is None
    with pytest.raises(Fault, match="go together"):
        Tls.load(certificate=tmp_path / "a", key=None, authority=None)
    with pytest.raises(Fault, match="cannot be read"):
        Tls.load(certificate=tmp_path / "a", key=tmp_path / "b", authority=tmp_path / "c")


async def test_with_tls_only_certified_callers_get_through() -> None:
    """Attack list 7: no certificate, a stranger's, the right one; the token is still needed."""
    ours, strangers = make_tls("localhost"), make_tls("localhost")
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve("0.0.0.0:0", tls=ours, stop=stop, on_ready=ready.set_result)
    )
    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
    port = ready.result() if ready.done() else running.result()
    address = f"localhost:{port}"
    token = identity.mint(KEY, subject="me", role=Role.SERVICE, now=wall_clock())
    for tls in (strangers, None):
        with pytest.raises(Fault) as refused:
            await _ask(client.connect(address, token=lambda: token, tls=tls))
        assert refused.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE
    with pytest.raises(Fault) as refused:
        await _ask(client.connect(address, token=None, tls=ours))
    assert refused.value.code is FaultCode.ACCESS_TOKEN_MISSING
    assert await _ask(client.connect(address, token=lambda: token, tls=ours)) == "me"
    stop.set()
    await running


async def _ask(channel: grpc.aio.Channel) -> str:
    stub: Any = event_service_pb2_grpc.EventServiceStub(channel)
    async with channel:
        # Without waiting: a refused handshake is what is looked for.
        answer = await stub.ListEvents(asking(), timeout=1, wait_for_ready=False)
        return str(answer.next_page_token)
