"""Every method of every contract, over a real socket, with every kind of caller.

Attack list 7 and 8. The servicers answer anything; what refuses is the chassis alone.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest

from chassis import access, identity
from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.chassis import KEY, serving

NAME = "tunesmith.security.AnyService"
STREAMS = frozenset({"/tunesmith.api.event.v1.EventService/WatchRun"})
OURS = sorted(method for method in access.ALLOWED if method.startswith("/tunesmith."))


class AnyMethod(grpc.GenericRpcHandler):
    """Answers every method of the contracts with nothing."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: bytes, _context: Any) -> bytes:
            return b""

        async def stream(_request: bytes, _context: Any) -> Any:
            yield b""

        if handler_call_details.method in STREAMS:
            return grpc.unary_stream_rpc_method_handler(stream)
        if handler_call_details.method in OURS:
            return grpc.unary_unary_rpc_method_handler(answer)
        return None


def register(server: Any) -> list[str]:
    server.add_generic_rpc_handlers((AnyMethod(),))
    return []


def now() -> datetime:
    return datetime.now(UTC)


def token(role: Role, *, key: str = KEY, age_seconds: float = 0) -> str:
    made = now() - timedelta(seconds=age_seconds)
    project = "acme" if role is Role.PROJECT else None
    return identity.mint(
        key, subject="nodes/n", role=role, project=project, ttl_seconds=60, now=made
    )


def unsigned() -> str:
    claims = {"sub": "x", "role": "operator", "iat": int(time.time())}
    nothing: Any = None
    return jwt.encode(claims, nothing, algorithm="none")


STRANGERS = {
    "nobody": None,
    "an empty token": "",
    "unsigned": unsigned(),
    "forged": token(Role.OPERATOR, key="another-key-" + 32 * "x"),
    "expired": token(Role.OPERATOR, age_seconds=120),
    "of the future": token(Role.OPERATOR, age_seconds=-3600),
    "cut": token(Role.OPERATOR)[:-1],
}


async def ask(channel: grpc.aio.Channel, method: str, shown: str | None) -> grpc.StatusCode:
    metadata = () if shown is None else (("authorization", f"Bearer {shown}"),)
    unary: Any = channel.unary_unary(method)
    stream: Any = channel.unary_stream(method)
    try:
        if method in STREAMS:
            async for _ in stream(b"", metadata=metadata, timeout=10):
                pass
        else:
            await unary(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_no_stranger_gets_through_to_any_method() -> None:
    async with (
        serving(register) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for method in OURS:
            for who, shown in STRANGERS.items():
                found = await ask(channel, method, shown)
                assert found is grpc.StatusCode.UNAUTHENTICATED, (method, who)


async def test_every_method_lets_in_its_own_callers_and_nobody_else() -> None:
    tokens = {role: token(role) for role in Role}
    async with (
        serving(register) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for method in OURS:
            let_in = {
                role
                for role, shown in tokens.items()
                if await ask(channel, method, shown) is grpc.StatusCode.OK
            }
            assert let_in == access.ALLOWED[method], method


async def test_a_method_that_nobody_classified_is_closed_to_all() -> None:
    tokens = [token(role) for role in Role]
    async with (
        serving(register) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for shown in tokens:
            found = await ask(channel, f"/{NAME}/Anything", shown)
            assert found is grpc.StatusCode.UNIMPLEMENTED
        found = await ask(channel, f"/{NAME}/Anything", None)
        assert found is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("role", ["admin", "SERVICE", "", None, ["service"], {"service": 1}, 7])
def test_a_signed_token_with_a_role_that_is_none_is_refused(role: object) -> None:
    claims = {"sub": "x", "role": role, "iat": int(time.time())}
    with pytest.raises(Fault) as refused:
        identity.verify(KEY, jwt.encode(claims, KEY, algorithm="HS256"), now())
    assert refused.value.code is FaultCode.ACCESS_TOKEN_INVALID
