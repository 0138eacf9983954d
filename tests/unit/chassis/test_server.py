"""A server and a client of the chassis over a real connection on this machine."""

import asyncio
import functools
import mmap
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from chassis import client, identity, server
from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.chassis import KEY, serving
from tests.support.ports import free_port
from tests.unit.chassis.support import wall_clock
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc

NAME = "tunesmith.api.event.v1.EventService"
RUN = "projects/acme/runs/run-1"


class Events(event_service_pb2_grpc.EventServiceServicer):
    """Answers by the name of the run that is asked for."""

    async def ListEvents(self, request: Any, context: Any) -> Any:
        match request.page_token:
            case "fault":
                raise Fault(FaultCode.RUN_NOT_FOUND, "No such run.", stage="saving", rank=3)
            case "huge":
                many = {f"key{number:03}{'k' * 60}": "…" * 500 for number in range(100)}
                raise Fault(FaultCode.STORAGE_FULL, "…" * 9000, remedy="…" * 9000, **many)
            case "mistake":
                raise RuntimeError("secret detail of line 7")
            case "outage":
                raise ConnectionResetError("peer of 10.0.0.1")
            case "slow":
                await asyncio.sleep(60)
        subject = identity.current_caller().subject
        return event_service_pb2.ListEventsResponse(next_page_token=subject)

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for sequence in range(1, 4):
            event = event_pb2.Event(sequence=sequence)
            yield event_service_pb2.WatchRunResponse(event=event)
        if request.after_sequence:
            raise Fault(FaultCode.RUN_NOT_FOUND)


def register(grpc_server: Any) -> list[str]:
    event_service_pb2_grpc.add_EventServiceServicer_to_server(Events(), grpc_server)
    return [NAME]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(register) as number:
        yield number


def token(role: Role = Role.SERVICE, **changes: Any) -> str:
    project = "acme" if role is Role.PROJECT else None
    settings: dict[str, Any] = {"subject": "me", "role": role, "project": project}
    return identity.mint(KEY, **{**settings, "now": wall_clock(), **changes})


@pytest.fixture
async def stub(port: int) -> AsyncIterator[Any]:
    async with client.connect(f"127.0.0.1:{port}", token=token) as channel:
        yield event_service_pb2_grpc.EventServiceStub(channel)


def asking(what: str = "") -> event_service_pb2.ListEventsRequest:
    return event_service_pb2.ListEventsRequest(run=RUN, page_token=what)


async def test_a_handler_knows_who_calls(stub: Any) -> None:
    response = await stub.ListEvents(asking())
    assert response.next_page_token == "me"


async def test_a_fault_arrives_as_the_fault_that_was_raised(stub: Any) -> None:
    with pytest.raises(Fault) as raised:
        await stub.ListEvents(asking("fault"))
    fault = raised.value
    assert (fault.code, fault.message) == (FaultCode.RUN_NOT_FOUND, "No such run.")
    assert fault.stage == "saving"
    assert fault.metadata == {"rank": "3"}


async def test_any_client_reads_status_error_info_and_remedy(port: int) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    plain: Any = event_service_pb2_grpc.EventServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await plain.ListEvents(asking("fault"), metadata=(("authorization", f"Bearer {token()}"),))
    await channel.close()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == "No such run."
    status = rpc_status.from_call(raised.value)
    info, remedy = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "RUN_NOT_FOUND",
        "tunesmith",
        {"rank": "3"},
    )
    assert status.details[2].Unpack(remedy)
    assert "tunesmith run list" in remedy.message


async def test_the_largest_fault_reaches_a_client_with_default_limits(port: int) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    plain: Any = event_service_pb2_grpc.EventServiceStub(channel)
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await plain.ListEvents(
                asking("huge"), metadata=(("authorization", f"Bearer {token()}"),)
            )
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(raised.value.details()).startswith("……")
        assert (
            rpc_status.from_call(raised.value).details[0].Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
        )
    await channel.close()


async def test_a_mistake_of_ours_shows_no_traceback_and_is_logged_once(
    stub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """000-35, 000-42, 004-07"""
    with pytest.raises(Fault) as raised:
        await stub.ListEvents(asking("mistake"))
    assert raised.value.code is FaultCode.INTERNAL_UNEXPECTED
    assert RUN in raised.value.message
    assert "line 7" not in str(raised.value.__dict__)
    logged = capsys.readouterr().out
    assert logged.count("secret detail of line 7") >= 1
    assert logged.count("unexpected") == 1
    assert RUN in logged


async def test_an_outage_behind_the_handler_asks_to_try_again(port: int) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    plain: Any = event_service_pb2_grpc.EventServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await plain.ListEvents(asking("outage"), metadata=(("authorization", f"Bearer {token()}"),))
    await channel.close()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "10.0.0.1" not in str(raised.value.details())


async def test_a_stream_ends_with_its_fault(stub: Any) -> None:
    stream = stub.WatchRun(event_service_pb2.WatchRunRequest(name=RUN, after_sequence=1))
    responses = aiter(stream)
    seen = [(await anext(responses)).event.sequence for _ in range(3)]
    assert seen == [1, 2, 3]
    with pytest.raises(Fault) as raised:
        await anext(responses)
    assert raised.value.code is FaultCode.RUN_NOT_FOUND


async def test_a_stream_may_be_left_early(stub: Any) -> None:
    request = event_service_pb2.WatchRunRequest(name=RUN)
    async for response in stub.WatchRun(request):
        assert response.event.sequence == 1
        break
    assert (await stub.ListEvents(asking())).next_page_token == "me"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "ACCESS_TOKEN_MISSING"),
        ("", "ACCESS_TOKEN_MISSING"),
        ("Bearer nonsense", "ACCESS_TOKEN_INVALID"),
        ("Basic dXNlcjpwYXNz", "ACCESS_TOKEN_INVALID"),
        (f"Bearer {token(role=Role.NODE, subject='nodes/n')}", "ACCESS_DENIED"),
        (
            f"Bearer {token(ttl_seconds=1, now=wall_clock() - timedelta(hours=1))}",
            "ACCESS_TOKEN_INVALID",
        ),
        (
            "Bearer " + identity.mint("z" * 40, subject="me", role=Role.OPERATOR, now=wall_clock()),
            "ACCESS_TOKEN_INVALID",
        ),
    ],
)
async def test_strangers_are_refused_on_the_wire(port: int, header: str | None, code: str) -> None:
    """002-30; attack list 7 and 8: over the real socket."""
    channel = client.connect(f"127.0.0.1:{port}", token=None)
    some: Any = event_service_pb2_grpc.EventServiceStub(channel)
    metadata = () if header is None else (("authorization", header),)
    with pytest.raises(Fault) as raised:
        await some.ListEvents(asking(), metadata=metadata)
    assert raised.value.code.value == code
    stream = some.WatchRun(event_service_pb2.WatchRunRequest(), metadata=metadata)
    with pytest.raises(Fault) as raised:
        await anext(aiter(stream))
    assert raised.value.code.value == code
    await channel.close()


async def test_an_unknown_method_tells_strangers_nothing(port: int) -> None:
    for text, code in ((None, "ACCESS_TOKEN_MISSING"), (token(), "INPUT_METHOD_UNKNOWN")):
        tokens = functools.partial(str, text) if text else None
        channel = client.connect(f"127.0.0.1:{port}", token=tokens)
        call: Any = channel.unary_unary("/tunesmith.api.run.v1.RunService/Nothing")
        with pytest.raises(Fault) as raised:
            await call(b"")
        assert raised.value.code.value == code
        await channel.close()


async def test_bytes_that_are_no_message_are_refused(port: int) -> None:
    """Attack list 10"""
    channel = client.connect(f"127.0.0.1:{port}", token=token)
    call: Any = channel.unary_unary(f"/{NAME}/ListEvents")
    deep = b""
    for _ in range(200):
        deep = b"\x0b" + deep + b"\x0c"
    for body in (b"\xff\xff\xff", deep):
        with pytest.raises(Fault) as raised:
            await call(body)
        assert raised.value.code is FaultCode.INPUT_MESSAGE_TOO_DEEP
    for size in (4 * 1024 * 1024 + 1, 8 * 1024 * 1024):
        with pytest.raises(Fault) as raised:
            await call(b"\x00" * size)
        assert raised.value.code is FaultCode.INPUT_MESSAGE_TOO_LARGE
    await channel.close()


async def test_health_is_open_and_reflection_is_not(port: int) -> None:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", NAME):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert await _listed(channel, metadata=()) is None
    names = await _listed(channel, metadata=(("authorization", f"Bearer {token()}"),))
    await channel.close()
    assert names is not None
    assert NAME in names


async def test_a_worker_answers_health_and_nothing_else() -> None:
    async with serving(lambda _: [], signing_key=None) as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        metadata = (("authorization", f"Bearer {token()}"),)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await anext(aiter(health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await channel.close()


async def test_a_client_waits_for_a_server_that_is_starting() -> None:
    port = free_port()
    channel = client.connect(f"127.0.0.1:{port}", token=token)
    some: Any = event_service_pb2_grpc.EventServiceStub(channel)
    call = asyncio.ensure_future(some.ListEvents(asking(), timeout=10))
    await asyncio.sleep(0.05)
    stop = asyncio.Event()
    again = asyncio.create_task(
        server.run_server(
            service="test",
            listen=f"127.0.0.1:{port}",
            tls=None,
            signing_key=KEY,
            register=register,
            stop=stop,
        )
    )
    assert (await call).next_page_token == "me"
    await channel.close()
    stop.set()
    await again


async def test_a_server_that_does_not_answer_in_time_is_unavailable(stub: Any) -> None:
    with pytest.raises(Fault) as raised:
        await stub.ListEvents(asking("slow"), timeout=0.1)
    assert raised.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE


async def test_background_tasks_run_and_end_with_the_server() -> None:
    seen: list[str] = []

    async def work(stop: asyncio.Event) -> None:
        seen.append("begun")
        await stop.wait()
        seen.append("ended")

    async with serving(register, background=[work]):
        await asyncio.sleep(0)
    assert seen == ["begun", "ended"]


@pytest.mark.parametrize("error", [None, ValueError("broken"), Fault(FaultCode.STORAGE_FULL)])
async def test_a_background_task_that_dies_ends_the_process(error: Exception | None) -> None:
    async def die(stop: asyncio.Event) -> None:
        if error is not None:
            raise error

    ended = server.run_server(
        service="test",
        listen="127.0.0.1:0",
        tls=None,
        signing_key=KEY,
        register=register,
        background=[die],
    )
    with pytest.raises(type(error) if error else Fault):
        await ended


async def test_a_taken_port_is_said_clearly() -> None:
    async with serving(register) as port:
        with pytest.raises(Fault, match="Cannot listen"):
            await server.run_server(
                service="test",
                listen=f"127.0.0.1:{port}",
                tls=None,
                signing_key=KEY,
                register=register,
            )


async def _listed(channel: grpc.aio.Channel, *, metadata: Any) -> list[str] | None:
    some: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    try:
        async for answer in some.ServerReflectionInfo(requests, metadata=metadata):
            return [service.name for service in answer.list_services_response.service]
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017
    return None


def test_every_channel_option_in_the_code_is_one_that_grpc_knows() -> None:
    """A misspelt one is ignored in silence: once, idle connections were cut off for their pings."""
    root = Path(__file__).parents[3]
    sources = [*root.glob("libs/**/*.py"), *root.glob("services/**/*.py")]
    named = {
        name
        for source in sources
        if not source.is_relative_to(root / "libs/tunesmith/api")
        for name in re.findall(rb'"(grpc\.[a-z0-9_.]+)",? ', source.read_bytes())
    }
    assert len(named) > 10
    with open(cygrpc.__file__, "rb") as binary:
        known = mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ)
        assert [name for name in named if known.find(name + b"\0") < 0] == []
