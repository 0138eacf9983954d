"""Events, nodes and faults for users: what can be seen without changing anything."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

from chassis import paging
from chassis.identity import Role, current_caller
from lexicon.faults import TABLE, Fault, FaultCode
from lexicon.names import RunName
from scheduler import events, wire, wire_work
from scheduler.store import RUNS_CHANNEL, Store
from scheduler.wakeups import Wakeups, rest
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_service_pb2, fault_service_pb2_grpc
from tunesmith.api.work.v1 import work_service_pb2, work_service_pb2_grpc

ALL_RUNS: Final = "-"
_BATCH_SIZE: Final = 200
_DEFAULT_PAGE_SIZE: Final = 100
_MOST_EVENTS: Final = 1000
# How long a watcher sleeps when no notification comes, for example while the listener reconnects.
_POLL_SECONDS: Final = 1.0
_EVERYBODY: Final = frozenset({Role.SERVICE, Role.OPERATOR})


class EventService(event_service_pb2_grpc.EventServiceServicer):
    """See the contract for each method."""

    def __init__(self, store: Store, wakeups: Wakeups) -> None:
        self._store = store
        self._wakeups = wakeups

    async def WatchRun(
        self, request: event_service_pb2.WatchRunRequest, _context: Any
    ) -> AsyncIterator[event_service_pb2.WatchRunResponse]:
        RunName.parse(request.name)
        current_caller().require_project(request.name)
        if request.after_sequence < 0:
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                "after_sequence must be 0 or more.",
                field="after_sequence",
            )
        seen = request.after_sequence
        with self._wakeups.waiting(topic_of(request.name)) as woken:
            while True:
                if self._wakeups.is_closed:
                    # A quiet end would say that the run has ended.
                    raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE)
                events, has_ended = await self._next(request.name, seen)
                for event in events:
                    seen = event.sequence
                    yield event_service_pb2.WatchRunResponse(event=event)
                if has_ended:
                    return
                if not events:
                    await rest(woken, seconds=_POLL_SECONDS)

    async def ListEvents(
        self, request: event_service_pb2.ListEventsRequest, _context: Any
    ) -> event_service_pb2.ListEventsResponse:
        size = min(paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE), _MOST_EVENTS)
        if request.run == ALL_RUNS:
            return await self._list_all(request.page_token, size)
        RunName.parse(request.run)
        current_caller().require_project(request.run)
        scope = f"events {request.run}"
        after = paging.read_token(request.page_token, scope=scope, first=0)
        async with self._store.transaction() as transaction:
            if await transaction.newest_event(request.run) is None:
                raise Fault(FaultCode.RUN_NOT_FOUND, run=request.run)
            payloads = await transaction.events_of_run(request.run, after=after, size=size)
        found = [wire.parse(event_pb2.Event, payload) for payload in payloads]
        last = found[-1].sequence if found else after
        return event_service_pb2.ListEventsResponse(
            events=found, next_page_token=paging.make_token(scope=scope, position=last)
        )

    async def _list_all(self, cursor: str, size: int) -> event_service_pb2.ListEventsResponse:
        if current_caller().role not in _EVERYBODY:
            raise Fault(FaultCode.ACCESS_DENIED, role=current_caller().role)
        payloads, after = await self._store.events_of_all(cursor, limit=size)
        found = [wire.parse(event_pb2.Event, payload) for payload in payloads]
        return event_service_pb2.ListEventsResponse(events=found, next_page_token=after)

    async def _next(self, run: str, seen: int) -> tuple[list[event_pb2.Event], bool]:
        """The next events of a run, and whether nothing follows them."""
        async with self._store.transaction() as transaction:
            newest = await transaction.newest_event(run)
            if newest is None:
                raise Fault(FaultCode.RUN_NOT_FOUND, run=run)
            payloads = await transaction.events_of_run(run, after=seen, size=_BATCH_SIZE)
        found = [wire.parse(event_pb2.Event, payload) for payload in payloads]
        sequence, subject = newest
        reached = found[-1].sequence if found else seen
        return found, events.is_last(subject) and reached >= sequence


class NodeService(work_service_pb2_grpc.NodeServiceServicer):
    """See the contract for each method."""

    def __init__(self, store: Store, *, silent: timedelta) -> None:
        self._store = store
        self._silent = silent

    async def ListNodes(
        self, request: work_service_pb2.ListNodesRequest, _context: Any
    ) -> work_service_pb2.ListNodesResponse:
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        after = paging.read_token(request.page_token, scope="nodes", first=0)
        async with self._store.transaction() as transaction:
            found, positions, now = await transaction.page_of_nodes(after=after, size=size)
        nodes = [wire_work.node_to_proto(node, now=now, silent=self._silent) for node in found]
        for node in nodes:
            if not _may_see(node.run):
                node.run = ""
        full = len(found) == size
        token = paging.make_token(scope="nodes", position=positions[-1]) if full else ""
        return work_service_pb2.ListNodesResponse(nodes=nodes, next_page_token=token)


class FaultService(fault_service_pb2_grpc.FaultServiceServicer):
    """See the contract for each method."""

    async def ExplainFault(
        self, request: fault_service_pb2.ExplainFaultRequest, _context: Any
    ) -> fault_service_pb2.ExplainFaultResponse:
        try:
            code = FaultCode(request.code)
        except ValueError:
            raise Fault(FaultCode.INPUT_FAULT_UNKNOWN, fault_code=request.code[:80]) from None
        return fault_service_pb2.ExplainFaultResponse(explanation=wire.explanation_to_proto(code))

    async def ListFaults(
        self, request: fault_service_pb2.ListFaultsRequest, _context: Any
    ) -> fault_service_pb2.ListFaultsResponse:
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        start = paging.read_token(request.page_token, scope="faults", first=0)
        codes = sorted(TABLE)
        page = codes[start : start + size]
        end = start + len(page)
        token = paging.make_token(scope="faults", position=end) if end < len(codes) else ""
        return fault_service_pb2.ListFaultsResponse(
            explanations=[wire.explanation_to_proto(code) for code in page],
            next_page_token=token,
        )


def topic_of(run: str) -> str:
    """What a watcher of a run waits for."""
    return f"{RUNS_CHANNEL} {run}"


def _may_see(run: str) -> bool:
    """Whether the caller may know which run a node works on."""
    caller = current_caller()
    return caller.role in _EVERYBODY or run.startswith(f"projects/{caller.project}/")


async def listen(store: Store, wakeups: Wakeups, stop: asyncio.Event) -> None:
    """Passes notifications of the database on to who waits, until the connection ends."""

    def wake(channel: str, payload: str) -> None:
        wakeups.wake(channel if channel != RUNS_CHANNEL else topic_of(payload))

    await store.listen(wake, stop)
