"""Work for nodes: register, lease, heartbeat, outputs, the end of a task of any kind.

Every call on a lease shows its fencing epoch; what does not come from the newest lease of its owner
is refused with RUN_LEASE_LOST and changes nothing. A call that is made again after its answer was
lost is answered again.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from chassis import telemetry
from chassis.identity import current_caller
from chassis.sealing import Sealer
from lexicon import names
from lexicon.faults import Fault, FaultCode
from lexicon.ids import new_id
from scheduler import wire, wire_work
from scheduler.alerts import Alerts
from scheduler.domain import tasks
from scheduler.domain.node import NodeRecord
from scheduler.domain.signals import Heartbeat, LeaseLost, Loss, TaskFailed, TaskReleased
from scheduler.domain.tasks import Lease, LeaseOutcome, TaskKind, TaskLeased, TaskState
from scheduler.kinds import Kind, Kinds, Lock, Owner
from scheduler.peers import Peers
from scheduler.rows import EXPORT_TIER
from scheduler.store import Store, Transaction
from scheduler.task_store import TASKS_CHANNEL
from scheduler.wakeups import Wakeups, rest
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

MAX_WAIT_MILLIS: Final = 30_000
MAX_INCARNATION_CHARACTERS: Final = 128
# How long a waiting node sleeps when no notification comes; retries whose rest is over are found
# so.
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A lease that a call names, with its owner locked."""

    kind: Kind[Any]
    owner: Any
    lease: Lease
    now: datetime

    @property
    def prefix(self) -> str:
        """URI under which the lease may write."""
        return self.kind.owners.about(self.owner).prefix(self.lease.fencing_epoch)


class WorkService(work_service_pb2_grpc.WorkServiceServicer):
    """See the contract for each method."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        wakeups: Wakeups,
        sealer: Sealer,
        alerts: Alerts,
        kinds: Kinds,
        *,
        lease: timedelta,
        heartbeat_millis: int,
    ) -> None:
        """Make it.

        Args:
            kinds: every kind of task, in the order in which a node is offered work.
            lease: how long a node may be silent.
        """
        self._store = store
        self._peers = peers
        self._wakeups = wakeups
        self._sealer = sealer
        self._alerts = alerts
        self._kinds = kinds
        self._lease = lease
        self._heartbeat_millis = heartbeat_millis

    async def RegisterNode(
        self, request: work_service_pb2.RegisterNodeRequest, _context: Any
    ) -> work_service_pb2.RegisterNodeResponse:
        node = _node_from_proto(request)
        async with self._store.transaction() as transaction:
            await transaction.put_node(node)
            old = await transaction.tasks.leases_of_old(node.name, node.incarnation)
            stored = await transaction.read_node(node.name)
            now = await transaction.now()
        assert stored is not None
        for lease, owner in old:
            await lose(self._store, self._kinds, owner, lease, Loss.RESTARTED)
        log.info("node registered", node=node.name, tier=node.tier, kind=node.kind)
        shown = wire_work.node_to_proto(stored, now=now, silent=self._lease)
        return work_service_pb2.RegisterNodeResponse(node=shown)

    async def LeaseTask(
        self, request: work_service_pb2.LeaseTaskRequest, _context: Any
    ) -> work_service_pb2.LeaseTaskResponse:
        names.NodeName.parse(request.node)
        current_caller().require_node(request.node)
        wait_seconds = min(max(request.wait_millis, 0), MAX_WAIT_MILLIS) / 1000
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        with self._wakeups.waiting(TASKS_CHANNEL) as woken:
            while True:
                lease = await self._offer(request.node, request.incarnation)
                left = deadline - loop.time()
                if lease is not None or left <= 0 or self._wakeups.is_closed:
                    return work_service_pb2.LeaseTaskResponse(lease=lease)
                await rest(woken, seconds=min(left, _POLL_SECONDS))

    async def HeartbeatTask(
        self, request: work_service_pb2.HeartbeatTaskRequest, _context: Any
    ) -> work_service_pb2.HeartbeatTaskResponse:
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            if held.lease.outcome is not None:
                return _farewell(held)
            owner = await self._report(transaction, held, request)
            temperature = (
                request.temperature_celsius if request.HasField("temperature_celsius") else None
            )
            await transaction.touch_node(held.lease.node, held.lease.incarnation, temperature)
        return _directive(held.kind, owner)

    async def SignInputs(
        self, request: work_service_pb2.SignInputsRequest, _context: Any
    ) -> work_service_pb2.SignInputsResponse:
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            tasks.held(held.owner.task, fencing_epoch=request.fencing_epoch)
        given = await self._given(held.kind, held.owner.name, held.lease)
        return work_service_pb2.SignInputsResponse(files=wire_work.files_of(given))

    async def SignOutputs(
        self, request: work_service_pb2.SignOutputsRequest, _context: Any
    ) -> work_service_pb2.SignOutputsResponse:
        if not 0 < len(request.files) <= wire_work.MAX_FILES:
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                f"files must be 1 to {wire_work.MAX_FILES}.",
                field="files",
            )
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            tasks.held(held.owner.task, fencing_epoch=request.fencing_epoch)
        uris = [wire_work.output_uri(file, prefix=held.prefix) for file in request.files]
        sizes = [file.size_bytes for file in request.files]
        urls = await self._peers.sign_writes(dict(zip(uris, sizes, strict=True)))
        return work_service_pb2.SignOutputsResponse(
            outputs=[
                work_service_pb2.SignedOutput(path=file.path, uri=uri, url=urls[uri])
                for file, uri in zip(request.files, uris, strict=True)
            ]
        )

    async def CompleteTask(
        self, request: work_service_pb2.CompleteTaskRequest, _context: Any
    ) -> work_service_pb2.CompleteTaskResponse:
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            if held.lease.outcome is not LeaseOutcome.COMPLETED:
                owner = await self._report(transaction, held, request)
                wire_work.check_files(request.outputs, prefix=held.prefix)
                # The row stays locked meanwhile, so that a cancelled owner leaves no hub entry.
                await held.kind.complete(transaction, owner, request)
                log.info("task completed", owner=owner.name, kind=held.lease.kind)
        return work_service_pb2.CompleteTaskResponse()

    async def FailTask(
        self, request: work_service_pb2.FailTaskRequest, _context: Any
    ) -> work_service_pb2.FailTaskResponse:
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            if held.lease.outcome is not LeaseOutcome.FAILED:
                owners, lease = held.kind.owners, held.lease
                owner = await self._report(transaction, held, request)
                about = owners.about(owner)
                fault = wire.fault_from_proto(request.fault, stage=about.stage, node=lease.node)
                count = await owners.same_oom_count(transaction, owner)
                signal = TaskFailed(
                    fencing_epoch=lease.fencing_epoch, fault=fault, same_oom_count=count
                )
                await owners.commit(transaction, owner, signal, held.now)
                await self._alerts.record(
                    transaction, owner.name, about, lease, fault, same_oom_count=count
                )
                log.warning("attempt failed", owner=owner.name, kind=lease.kind, code=fault.code)
        return work_service_pb2.FailTaskResponse()

    async def ReleaseTask(
        self, request: work_service_pb2.ReleaseTaskRequest, _context: Any
    ) -> work_service_pb2.ReleaseTaskResponse:
        async with self._store.transaction() as transaction:
            held = await self._lock(transaction, request)
            if held.lease.outcome is not LeaseOutcome.RELEASED:
                signal = TaskReleased(fencing_epoch=held.lease.fencing_epoch)
                await held.kind.owners.commit(transaction, held.owner, signal, held.now)
        return work_service_pb2.ReleaseTaskResponse()

    async def _offer(self, name: str, incarnation: str) -> work_pb2.Lease | None:
        """The lease that a node gets now, None when there is no work for it."""
        async with self._store.transaction() as transaction:
            node = await transaction.read_node(name)
            if node is None or node.incarnation != incarnation:
                raise Fault(FaultCode.NODE_NOT_REGISTERED, node=name)
            await transaction.touch_node(name, incarnation, None)
            held = await transaction.tasks.lease_of_node(name, incarnation)
        if held is not None:
            # It asks although it has one: the answer that gave it was lost.
            lease, owner = held
            return await self._given(self._kinds[lease.kind], owner, lease)
        for kind_name, kind in self._kinds.items():
            if kind.worker is not node.kind:
                continue
            async with self._store.transaction() as transaction:
                owners = await kind.candidates(transaction, node)
            for owner in owners:
                given = await self._try(node, kind_name, owner)
                if given is not None:
                    return given
        return None

    async def _try(self, node: NodeRecord, kind_name: str, name: str) -> work_pb2.Lease | None:
        """Leases one task; None when it cannot be had. Others are asked before any lock."""
        kind = self._kinds[kind_name]
        urls = await self._prepared(kind, name)
        if urls is None:
            return None
        async with self._store.transaction() as transaction:
            found = await kind.owners.load(transaction, name, Lock.IF_FREE)
            if found is None:
                return None
            owner, now = found
            if owner.task.state is not TaskState.QUEUED or owner.task.kind != kind_name:
                return None
            if not urls.keys() >= set(await kind.inputs(transaction, owner)):
                # It was leased and given back since its URLs were signed, and reads more now.
                return None
            if not await kind.admits(transaction, owner):
                return None
            signal = TaskLeased(
                lease_id=new_id("lease", now=now, random_bytes=secrets.token_bytes),
                node=node.name,
                incarnation=node.incarnation,
                lease=self._lease,
            )
            owner = await kind.owners.commit(transaction, owner, signal, now)
            lease = owner.task.lease
            given = await self._lease_to_proto(transaction, kind, owner, lease, urls)
        log.info("task leased", owner=name, node=node.name, epoch=lease.fencing_epoch)
        return given

    async def _prepared(self, kind: Kind[Any], name: str) -> dict[str, str] | None:
        """URLs of a task's inputs; None when it cannot be offered now."""
        owner, inputs = await self._read(kind, name)
        try:
            await kind.check(owner)
            return await self._peers.sign_reads(inputs)
        except Fault as fault:
            async with self._store.transaction() as transaction:
                found = await kind.owners.load(transaction, name, Lock.IF_FREE)
                if found is None or await kind.give_up(transaction, found[0], fault, found[1]):
                    return None
            log.warning("inputs cannot be signed", owner=name, code=fault.code)
            return None

    async def _given(self, kind: Kind[Any], name: str, lease: Lease) -> work_pb2.Lease:
        """A lease that was given before, with fresh URLs."""
        owner, inputs = await self._read(kind, name)
        urls = await self._peers.sign_reads(inputs)
        async with self._store.transaction() as transaction:
            return await self._lease_to_proto(transaction, kind, owner, lease, urls)

    async def _read(self, kind: Kind[Any], name: str) -> tuple[Any, list[str]]:
        """An owner with the URIs that its task reads."""
        async with self._store.transaction() as transaction:
            found = await kind.owners.load(transaction, name, Lock.NONE)
            assert found is not None
            return found[0], await kind.inputs(transaction, found[0])

    async def _lease_to_proto(
        self,
        transaction: Transaction,
        kind: Kind[Any],
        owner: Owner,
        lease: Lease,
        urls: Mapping[str, str],
    ) -> work_pb2.Lease:
        sealed = await transaction.hub_token(owner.name)
        token = "" if sealed is None else self._sealer.open(sealed, owner=owner.name)
        if token is None:
            log.warning(
                "hub token cannot be opened; the signing key is another one", run=owner.name
            )
        about = kind.owners.about(owner)
        proto = await kind.payload(transaction, owner, urls, token or "")
        proto.lease_id = lease.lease_id
        proto.run = about.run
        proto.attempt = lease.attempt
        proto.fencing_epoch = lease.fencing_epoch
        proto.expire_time.FromDatetime(lease.expire_time)
        proto.kind = wire_work.kind_to_proto(kind.worker)
        proto.traceparent = about.traceparent
        proto.heartbeat_millis = self._heartbeat_millis
        return proto

    async def _report(self, transaction: Transaction, held: _Held, request: Any) -> Any:
        """The owner after the reports of a call, each once; the call is a sign of life as well."""
        reports = wire_work.reports_from_proto(request.reports, prefix=held.prefix)
        epoch = held.lease.fencing_epoch
        signal = Heartbeat(fencing_epoch=epoch, lease=self._lease, reports=reports)
        return await held.kind.owners.commit(transaction, held.owner, signal, held.now)

    async def _lock(self, transaction: Transaction, request: Any) -> _Held:
        """A call's lease as it is now, with its owner locked.

        Raises:
            Fault: ACCESS_DENIED for the lease of another node; RUN_LEASE_LOST when it does not
                exist, shows another epoch, or was lost.
        """
        found = await transaction.tasks.lease(names.check_id(request.lease_id, field="lease_id"))
        if found is None:
            raise Fault(FaultCode.RUN_LEASE_LOST)
        lease, name = found
        current_caller().require_node(lease.node)
        if lease.fencing_epoch != request.fencing_epoch:
            raise Fault(FaultCode.RUN_LEASE_LOST, fencing_epoch=request.fencing_epoch)
        kind = self._kinds[lease.kind]
        locked = await kind.owners.load(transaction, name, Lock.WAIT)
        assert locked is not None
        owner, now = locked
        # It may have ended while we waited for the lock.
        found = await transaction.tasks.lease(request.lease_id)
        if found is None or found[0].outcome is LeaseOutcome.LOST:
            raise Fault(FaultCode.RUN_LEASE_LOST, fencing_epoch=request.fencing_epoch)
        return _Held(kind=kind, owner=owner, lease=found[0], now=now)


async def lose(store: Store, kinds: Kinds, name: str, lease: Lease, loss: Loss) -> bool:
    """Takes a lease from a node that is lost; False when that was no longer true."""
    owners = kinds[lease.kind].owners
    is_expiry = loss is Loss.EXPIRED
    async with store.transaction() as transaction:
        found = await owners.load(transaction, name, Lock.IF_FREE if is_expiry else Lock.WAIT)
        if found is None:
            return False
        owner, now = found
        held = owner.task.lease
        if held is None or held.lease_id != lease.lease_id:
            return False
        if is_expiry and not tasks.is_expired(held, now):
            return False
        signal = LeaseLost(fencing_epoch=held.fencing_epoch, loss=loss)
        await owners.commit(transaction, owner, signal, now)
    log.warning("node lost", owner=name, node=lease.node, loss=loss, attempt=lease.attempt)
    return True


def _directive(kind: Kind[Any], owner: Owner) -> work_service_pb2.HeartbeatTaskResponse:
    """What a node must do after its heartbeat."""
    lease, finish = owner.task.lease, kind.owners.about(owner).finish
    assert lease is not None
    go_on = work_service_pb2.DIRECTIVE_CONTINUE
    return work_service_pb2.HeartbeatTaskResponse(
        directive=work_service_pb2.DIRECTIVE_FINISH if finish else go_on,
        expire_time=wire.timestamp(lease.expire_time),
        acknowledged_report_number=lease.report_number,
        reason=finish,
    )


def _farewell(held: _Held) -> work_service_pb2.HeartbeatTaskResponse:
    """The answer to a heartbeat that comes after the end of its lease."""
    response = work_service_pb2.HeartbeatTaskResponse(
        directive=work_service_pb2.DIRECTIVE_ABORT,
        acknowledged_report_number=held.lease.report_number,
    )
    if held.lease.outcome in (LeaseOutcome.COMPLETED, LeaseOutcome.RELEASED):
        # It crossed with the call that ended the lease.
        response.directive = work_service_pb2.DIRECTIVE_CONTINUE
    else:
        response.reason = held.kind.owners.farewell(held.owner, held.lease)
    return response


def _node_from_proto(request: work_service_pb2.RegisterNodeRequest) -> NodeRecord:
    """A node that registers itself.

    Raises:
        Fault: INPUT_NAME_INVALID, INPUT_FIELD_MISSING, INPUT_FIELD_INVALID, ACCESS_DENIED.
    """
    node = request.node
    names.NodeName.parse(node.name)
    current_caller().require_node(node.name)
    incarnation = request.incarnation
    fits = 0 < len(incarnation) <= MAX_INCARNATION_CHARACTERS and incarnation.isprintable()
    if not fits:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"incarnation must be 1 to {MAX_INCARNATION_CHARACTERS} printable characters.",
            field="incarnation",
        )
    kind = wire_work.kind_from_proto(node.kind)
    tier = EXPORT_TIER if kind is TaskKind.EXPORT else names.check_id(node.tier, field="tier")
    description = work_pb2.Node()
    description.CopyFrom(node)
    description.tier = tier
    return NodeRecord(
        name=node.name,
        incarnation=request.incarnation,
        kind=kind,
        tier=tier,
        description=description.SerializeToString(),
        # The database's clock is the one that counts; these are replaced when it is written.
        register_time=_UNKNOWN_TIME,
        heartbeat_time=_UNKNOWN_TIME,
    )


_UNKNOWN_TIME: Final = wire.moment(work_pb2.Node().register_time)
