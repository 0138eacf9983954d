"""The gRPC door, with real servers behind and a real client before it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc import aio

from chassis import identity, server
from chassis.errors import fault_from_rpc, to_status
from gateway import wire
from gateway.domain.routes import FORWARDED, OWN, Upstream, table
from gateway.service import FaultService, Forwarder
from lexicon.faults import Fault, FaultCode
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_service_pb2, fault_service_pb2_grpc
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from tunesmith.api.work.v1 import work_service_pb2, work_service_pb2_grpc

KEY = "a-signing-key-of-at-least-32-bytes!"
NAME = "projects/p/runs/r"


class Runs(run_service_pb2_grpc.RunServiceServicer):
    """Stands behind the gateway and remembers what reached it."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.deadline = 0.0
        self.was_cancelled = asyncio.Event()

    async def GetRun(self, request: Any, context: Any) -> run_service_pb2.GetRunResponse:
        self.metadata = dict(context.invocation_metadata())
        self.deadline = context.time_remaining()
        if request.name.endswith("/missing"):
            status = to_status(Fault(FaultCode.RUN_NOT_FOUND, "There is no run missing.", run="x"))
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode.NOT_FOUND, status.message, details)
        if request.name.endswith("/huge"):
            return run_service_pb2.GetRunResponse(run=run_pb2.Run(display_name="x" * (5 << 20)))
        if request.name.endswith("/slow"):
            try:
                await asyncio.sleep(30)
            finally:
                self.was_cancelled.set()
        return run_service_pb2.GetRunResponse(run=run_pb2.Run(name=request.name))


class Events(event_service_pb2_grpc.EventServiceServicer):
    """Streams events; never ends when asked for the run `endless`."""

    def __init__(self) -> None:
        self.was_left = asyncio.Event()

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for sequence in range(request.after_sequence + 1, 4):
                yield event_service_pb2.WatchRunResponse(
                    event=event_pb2.Event(run=request.name, sequence=sequence)
                )
            if request.name.endswith("/endless"):
                await asyncio.sleep(30)
        finally:
            self.was_left.set()


class Stack:
    """A scheduler stand-in, the gateway before it, and a channel of a user."""

    def __init__(
        self, channel: aio.Channel, runs: Runs, events: Events, behind: aio.Server
    ) -> None:
        self.runs, self.events, self.behind = runs, events, behind
        self.run_stub = run_service_pb2_grpc.RunServiceStub(channel)
        self.event_stub = event_service_pb2_grpc.EventServiceStub(channel)
        self.fault_stub = fault_service_pb2_grpc.FaultServiceStub(channel)
        self.work_stub = work_service_pb2_grpc.WorkServiceStub(channel)


@asynccontextmanager
async def a_stack() -> AsyncIterator[Stack]:
    runs = Runs()  # type: ignore[abstract]  # answers what these tests ask
    events = Events()  # type: ignore[abstract]  # as above
    behind = aio.server()
    run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, behind)
    event_service_pb2_grpc.add_EventServiceServicer_to_server(events, behind)
    behind_port = behind.add_insecure_port("127.0.0.1:0")
    await behind.start()
    upstream = aio.insecure_channel(f"127.0.0.1:{behind_port}")

    def register(door: aio.Server) -> list[str]:
        channels = dict.fromkeys(Upstream, upstream)
        door.add_generic_rpc_handlers((Forwarder(table(wire.methods()), channels),))
        fault_service_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(), door)
        return [*FORWARDED, *OWN]

    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        server.run_server(
            service="gateway",
            listen="127.0.0.1:0",
            tls=None,
            signing_key=KEY,
            register=register,
            stop=stop,
            on_ready=ready.set_result,
        )
    )
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    if serving.done():
        await serving
    try:
        async with aio.insecure_channel(f"127.0.0.1:{ready.result()}") as channel:
            yield Stack(channel, runs, events, behind)
    finally:
        stop.set()
        await serving
        await upstream.close()
        await behind.stop(None)
    await behind.stop(None)


def as_user(role: identity.Role = identity.Role.PROJECT) -> tuple[tuple[str, str], ...]:
    project = "p" if role is identity.Role.PROJECT else None
    token = identity.mint(KEY, subject="me", role=role, project=project, now=datetime.now(UTC))
    return (("authorization", f"Bearer {token}"), ("x-forged", "1"))


async def test_a_call_reaches_its_service_with_the_callers_own_token_and_deadline() -> None:
    async with a_stack() as stack:
        request, mine = run_service_pb2.GetRunRequest(name=NAME), as_user()
        answer = await stack.run_stub.GetRun(request, metadata=mine, timeout=5)
        assert answer.run.name == NAME
        assert stack.runs.metadata["authorization"] == mine[0][1]
        assert "x-forged" not in stack.runs.metadata
        # A deadline travels as a whole number of its unit, rounded up.
        assert 0 < stack.runs.deadline < 5.1


async def test_a_refusal_comes_through_with_its_status_untouched() -> None:
    async with a_stack() as stack:
        request = run_service_pb2.GetRunRequest(name="projects/p/runs/missing")
        with pytest.raises(aio.AioRpcError) as refused:
            await stack.run_stub.GetRun(request, metadata=as_user(), timeout=5)
    expected = to_status(Fault(FaultCode.RUN_NOT_FOUND, "There is no run missing.", run="x"))
    details = dict(refused.value.trailing_metadata() or ())
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert details["grpc-status-details-bin"] == expected.SerializeToString()


async def test_nobody_without_a_good_token_reaches_a_service() -> None:
    async with a_stack() as stack:
        request = run_service_pb2.GetRunRequest(name=NAME)
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", "Bearer nonsense"),), grpc.StatusCode.UNAUTHENTICATED),
            (as_user(identity.Role.NODE), grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(aio.AioRpcError) as refused:
                await stack.run_stub.GetRun(request, metadata=metadata, timeout=5)
            assert refused.value.code() is code
        assert stack.runs.metadata == {}


async def test_methods_for_nodes_have_no_way_in_even_with_a_node_token() -> None:
    async with a_stack() as stack:
        request = work_service_pb2.LeaseTaskRequest(node="nodes/n", incarnation="i")
        node = as_user(identity.Role.NODE)
        with pytest.raises(aio.AioRpcError) as refused:
            await stack.work_stub.LeaseTask(request, metadata=node, timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stream_comes_through_and_ends() -> None:
    async with a_stack() as stack:
        request = event_service_pb2.WatchRunRequest(name=NAME, after_sequence=1)
        call = stack.event_stub.WatchRun(request, metadata=as_user(), timeout=5)
        assert [response.event.sequence async for response in call] == [2, 3]


async def test_who_leaves_a_stream_or_a_call_leaves_nothing_behind() -> None:
    async with a_stack() as stack:
        request = event_service_pb2.WatchRunRequest(name="projects/p/runs/endless")
        call = stack.event_stub.WatchRun(request, metadata=as_user(), timeout=20)
        first: Any = await call.read()
        assert first.event.sequence == 1
        call.cancel()
        await asyncio.wait_for(stack.events.was_left.wait(), timeout=5)
        slow = stack.run_stub.GetRun(
            run_service_pb2.GetRunRequest(name="projects/p/runs/slow"),
            metadata=as_user(),
            timeout=0.3,
        )
        with pytest.raises(aio.AioRpcError) as late:
            await slow
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(stack.runs.was_cancelled.wait(), timeout=5)


@pytest.mark.parametrize(
    "name",
    ["projects/p/runs/huge", "projects/p/runs/" + "x" * (5 << 20)],
    ids=["answer", "request"],
)
async def test_what_is_too_large_has_its_code(name: str) -> None:
    """002-42, attack list 10: the transport refuses the one, we the other; both have the shape."""
    async with a_stack() as stack:
        with pytest.raises(aio.AioRpcError) as refused:
            await stack.run_stub.GetRun(
                run_service_pb2.GetRunRequest(name=name), metadata=as_user(), timeout=10
            )
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    packed = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    assert status_pb2.Status.FromString(packed).code == refused.value.code().value[0]
    assert fault_from_rpc(refused.value).code is FaultCode.INPUT_MESSAGE_TOO_LARGE


async def test_a_service_that_is_away_is_named_without_its_address() -> None:
    async with a_stack() as stack:
        await stack.behind.stop(None)
        request = run_service_pb2.GetRunRequest(name=NAME)
        with pytest.raises(aio.AioRpcError) as refused:
            await stack.run_stub.GetRun(request, metadata=as_user(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert fault_from_rpc(refused.value).metadata["service"] == "scheduler"
        assert "127.0.0.1" not in (refused.value.details() or "")


async def test_the_gateway_explains_codes_itself() -> None:
    """002-42"""
    async with a_stack() as stack:
        request = fault_service_pb2.ExplainFaultRequest(code="run_not_found")
        answer = await stack.fault_stub.ExplainFault(request, metadata=as_user(), timeout=5)
        assert answer.explanation.code == "RUN_NOT_FOUND"
        assert answer.explanation.remedy
        codes, token = [], ""
        while True:
            page = await stack.fault_stub.ListFaults(
                fault_service_pb2.ListFaultsRequest(page_size=30, page_token=token),
                metadata=as_user(),
                timeout=5,
            )
            codes += [row.code for row in page.explanations]
            token = page.next_page_token
            if not token:
                break
        assert codes == sorted(code.value for code in FaultCode)
