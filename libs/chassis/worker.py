"""A worker: it registers its node, asks for work, and does one task after another."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio

from chassis import telemetry
from chassis.interceptor import unexpected
from chassis.leasing import CALL_SECONDS, PASSING, LeaseSession, backoff_seconds
from lexicon.faults import Fault, FaultCode
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

LEASE_WAIT_MILLIS = 20_000
LEASE_CALL_SECONDS = 30.0
# How long a handler may take to notice that it was aborted before it is cancelled.
ABORT_SECONDS = 10.0
# How often a node that takes no work says so; a node that is silent for longer counts as lost.
UNFIT_SECONDS = 5.0


class Worker:
    """Leases one task after another and gives each to a handler."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: work_pb2.Node,
        handle: Callable[[LeaseSession], Awaitable[None]],
        stop: asyncio.Event | None = None,
        *,
        free_memory_bytes: Callable[[], int] = lambda: 0,
        warm_models: Callable[[], Sequence[str]] = lambda: (),
        unfit_reason: Callable[[], str] = lambda: "",
        unfit_seconds: float = UNFIT_SECONDS,
        incarnation: str | None = None,
    ) -> None:
        """Make it.

        Args:
            channel: to the scheduler, with the node's token.
            node: what we are; `name`, `kind`, `tier`, `memory_bytes` and `version` are required.
            handle: does a task and completes or fails its session. A Fault that it raises fails
                the task; after `aborted` it has ten seconds to return before it is cancelled.
            stop: default for `run`.
            free_memory_bytes: read before each wait for work; 0 for what `node` says.
            warm_models: read before each wait for work.
            unfit_reason: read before each wait for work. While it is not empty no work is asked
                for, and the scheduler gets the reason every `unfit_seconds`.
            unfit_seconds: see `unfit_reason`.
            incarnation: id of this process; default a random one.
        """
        self._stub = work_service_pb2_grpc.WorkServiceStub(channel)
        self._node = node
        self._handle = handle
        self._stop = stop
        self._free_memory_bytes = free_memory_bytes
        self._warm_models = warm_models
        self._unfit_reason = unfit_reason
        self._unfit_seconds = unfit_seconds
        self._incarnation = incarnation or secrets.token_hex(16)

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Work until a stop is requested; a lease that is held then is released.

        Raises:
            Fault: the scheduler refuses this node: ACCESS_DENIED, ACCESS_TOKEN_INVALID, INPUT_….
        """
        stopping = stop or self._stop
        assert stopping is not None
        loop_task = asyncio.create_task(self._loop())
        stop_task = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait([loop_task, stop_task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop_task.cancel()
            loop_task.cancel()
            outcome = await asyncio.gather(loop_task, return_exceptions=True)
        error = outcome[0]
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error

    async def _loop(self) -> None:
        trouble_count = 0
        registered = False
        while True:
            try:
                if reason := self._unfit_reason():
                    await self._register(unfit_reason=reason)
                    registered, trouble_count = False, 0
                    await asyncio.sleep(self._unfit_seconds)
                    continue
                if not registered:
                    await self._register()
                    registered = True
                lease = await self._ask()
                trouble_count = 0
            except Fault as fault:
                if fault.code is FaultCode.NODE_NOT_REGISTERED:
                    registered = False
                elif fault.code not in PASSING:
                    raise
                trouble_count += 1
                log.warning("no answer about work", code=fault.code.value, reason=fault.message)
                await asyncio.sleep(backoff_seconds(trouble_count))
                continue
            if lease is not None:
                await self._work(lease)

    async def _register(self, *, unfit_reason: str = "") -> None:
        node = work_pb2.Node()
        node.CopyFrom(self._node)
        node.unfit_reason = unfit_reason
        request = work_service_pb2.RegisterNodeRequest(incarnation=self._incarnation, node=node)
        await self._stub.RegisterNode(request, timeout=CALL_SECONDS)
        if unfit_reason:
            log.error("node_unfit", node=node.name, reason=unfit_reason)
        else:
            log.info("registered", node=node.name, tier=node.tier)

    async def _ask(self) -> work_pb2.Lease | None:
        request = work_service_pb2.LeaseTaskRequest(
            node=self._node.name,
            incarnation=self._incarnation,
            wait_millis=LEASE_WAIT_MILLIS,
            free_memory_bytes=self._free_memory_bytes() or self._node.memory_bytes,
            warm_models=list(self._warm_models()),
        )
        response = await self._stub.LeaseTask(request, timeout=LEASE_CALL_SECONDS)
        return response.lease if response.HasField("lease") else None

    async def _work(self, lease: work_pb2.Lease) -> None:
        """Do one task from its lease to its end."""
        session = LeaseSession(self._stub, lease, node=self._node.name)
        kind = work_pb2.TaskKind.Name(lease.kind).removeprefix("TASK_KIND_").lower()
        with (
            telemetry.bind(run=lease.run, attempt=lease.attempt),
            telemetry.span(kind, lease.traceparent, run=lease.run, attempt=lease.attempt),
        ):
            log.info("task leased", task=kind, epoch=lease.fencing_epoch)
            heartbeats = asyncio.create_task(session.keep_alive())
            try:
                await self._do(session)
            except asyncio.CancelledError:
                await session.release()
                raise
            finally:
                heartbeats.cancel()
                await asyncio.gather(heartbeats, return_exceptions=True)
            log.info("task ended", task=kind, aborted=session.aborted.is_set())

    async def _do(self, session: LeaseSession) -> None:
        handling = asyncio.ensure_future(self._handle(session))
        aborting = asyncio.create_task(session.aborted.wait())
        try:
            await asyncio.wait([handling, aborting], return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                await asyncio.wait([handling], timeout=ABORT_SECONDS)
        finally:
            aborting.cancel()
            # Cancels what is still there, and lets it clean up.
            handling.cancel()
            outcome = (await asyncio.gather(handling, return_exceptions=True))[0]
        if session.aborted.is_set() or session.ended:
            if isinstance(outcome, Exception) and not isinstance(outcome, Fault):
                log.error("unexpected", exc_info=outcome)
            return
        if isinstance(outcome, Fault):
            await session.fail(outcome)
        else:
            reason = outcome if isinstance(outcome, Exception) else None
            log.error("task was left without an end", exc_info=reason)
            await session.fail(unexpected(run=session.lease.run))
