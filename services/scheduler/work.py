"""Work for nodes: register, lease, heartbeat, outputs, the end of a task.

Every call on a lease shows its fencing epoch; what does not come from the newest lease of its run
is refused with RUN_LEASE_LOST and changes nothing. A call that is made again after its answer was
lost is answered again.
"""

import asyncio
import secrets
from collections.abc import Mapping
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
from scheduler.domain import leasing, queueing
from scheduler.domain.decision import chain, decide
from scheduler.domain.effects import Decision
from scheduler.domain.queueing import Candidate
from scheduler.domain.run import Lease, Outcome, Record, StoredFile, TaskKind, TaskState
from scheduler.domain.signals import (
    ExportCompleted,
    Heartbeat,
    LeaseLost,
    Loss,
    TaskFailed,
    TaskLeased,
    TaskReleased,
    TrainingCompleted,
)
from scheduler.export_work import ExportWork, is_export
from scheduler.peers import Peers
from scheduler.rows import EXPORT_TIER, project_of
from scheduler.store import TASKS_CHANNEL, Store, Transaction
from scheduler.wakeups import Wakeups, rest
from scheduler.wire_work import NodeRecord
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

log = telemetry.logger(__name__)

MAX_WAIT_MILLIS: Final = 30_000
MAX_INCARNATION_CHARACTERS: Final = 128
# How long a waiting node sleeps when no notification comes; retries whose rest is over are found
# so.
_POLL_SECONDS: Final = 0.5
_CANCELLED: Final = "The run was cancelled."


class WorkService(work_service_pb2_grpc.WorkServiceServicer):
    """See the contract for each method."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        wakeups: Wakeups,
        sealer: Sealer,
        alerts: Alerts,
        *,
        lease: timedelta,
        heartbeat_millis: int,
        limits: Mapping[str, int],
    ) -> None:
        """Make it.

        Args:
            lease: how long a node may be silent.
            limits: how many runs each plan may train at once.
        """
        self._store = store
        self._peers = peers
        self._wakeups = wakeups
        self._sealer = sealer
        self._alerts = alerts
        self._lease = lease
        self._heartbeat_millis = heartbeat_millis
        self._limits = limits
        self._exports = ExportWork(
            store, peers, sealer, alerts, lease=lease, heartbeat_millis=heartbeat_millis
        )

    async def RegisterNode(
        self, request: work_service_pb2.RegisterNodeRequest, _context: Any
    ) -> work_service_pb2.RegisterNodeResponse:
        node = _node_from_proto(request)
        async with self._store.transaction() as transaction:
            await transaction.put_node(node)
            old = await transaction.leases_of_old_incarnations(node.name, node.incarnation)
            stored = await transaction.read_node(node.name)
            now = await transaction.now()
        assert stored is not None
        for lease, run in old:
            await lose(self._store, run, lease, Loss.RESTARTED)
        await self._exports.forget_old(node.name, node.incarnation)
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
        if is_export(request.lease_id):
            return await self._exports.heartbeat(request)
        async with self._store.transaction() as transaction:
            record, lease, now = await _lock(transaction, request)
            if lease.outcome is not None:
                return _farewell(lease)
            decision = self._reported(record, lease, request, now)
            await transaction.commit(decision)
            temperature = (
                request.temperature_celsius if request.HasField("temperature_celsius") else None
            )
            await transaction.touch_node(lease.node, lease.incarnation, temperature)
        return _directive(decision)

    async def SignInputs(
        self, request: work_service_pb2.SignInputsRequest, _context: Any
    ) -> work_service_pb2.SignInputsResponse:
        if is_export(request.lease_id):
            return await self._exports.sign_inputs(request)
        async with self._store.transaction() as transaction:
            record, lease, _ = await _lock(transaction, request)
            leasing.held(record.run, fencing_epoch=lease.fencing_epoch)
        urls = await self._peers.sign_reads(wire_work.inputs_of(record))
        given = self._lease_to_proto(record, lease, urls, [], sealed=None)
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
        if is_export(request.lease_id):
            return await self._exports.sign_outputs(request)
        async with self._store.transaction() as transaction:
            record, lease, _ = await _lock(transaction, request)
            leasing.held(record.run, fencing_epoch=lease.fencing_epoch)
        prefix = wire_work.output_prefix(record.run.name, lease.fencing_epoch)
        uris = [wire_work.output_uri(file, prefix=prefix) for file in request.files]
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
        if is_export(request.lease_id):
            await self._exports.complete(request)
            return work_service_pb2.CompleteTaskResponse()
        async with self._store.transaction() as transaction:
            record, lease, now = await _lock(transaction, request)
            if lease.outcome is not Outcome.COMPLETED:
                told = self._reported(record, lease, request, now)
                prefix = wire_work.output_prefix(record.run.name, lease.fencing_epoch)
                wire_work.check_files(request.outputs, prefix=prefix)
                # The row stays locked meanwhile, so that a cancelled run leaves no hub entry.
                files = await self._register(record, request.outputs)
                signal = _completed(lease, request, files)
                await transaction.commit(chain(told, signal, await transaction.now()))
                log.info("task completed", run=record.run.name, kind=lease.kind)
        return work_service_pb2.CompleteTaskResponse()

    async def FailTask(
        self, request: work_service_pb2.FailTaskRequest, _context: Any
    ) -> work_service_pb2.FailTaskResponse:
        if is_export(request.lease_id):
            await self._exports.fail(request)
            return work_service_pb2.FailTaskResponse()
        async with self._store.transaction() as transaction:
            record, lease, now = await _lock(transaction, request)
            if lease.outcome is not Outcome.FAILED:
                told = self._reported(record, lease, request, now)
                stage = told.after.stage
                fault = wire.fault_from_proto(request.fault, stage=stage, node=lease.node)
                count = await transaction.same_oom_count(
                    project_of(record.run.name), record.submission.fingerprint
                )
                signal = TaskFailed(
                    fencing_epoch=lease.fencing_epoch, fault=fault, same_oom_count=count
                )
                await transaction.commit(chain(told, signal, now))
                await self._alerts.note(transaction, record, fault, same_oom_count=count)
        return work_service_pb2.FailTaskResponse()

    async def ReleaseTask(
        self, request: work_service_pb2.ReleaseTaskRequest, _context: Any
    ) -> work_service_pb2.ReleaseTaskResponse:
        if is_export(request.lease_id):
            await self._exports.release(request)
            return work_service_pb2.ReleaseTaskResponse()
        async with self._store.transaction() as transaction:
            record, lease, now = await _lock(transaction, request)
            if lease.outcome is not Outcome.RELEASED:
                signal = TaskReleased(fencing_epoch=lease.fencing_epoch)
                await transaction.commit(decide(record.run, signal, now))
        return work_service_pb2.ReleaseTaskResponse()

    async def _offer(self, name: str, incarnation: str) -> work_pb2.Lease | None:
        """The lease that a node gets now, None when there is no work for it."""
        async with self._store.transaction() as transaction:
            node = await transaction.read_node(name)
            if node is None or node.incarnation != incarnation:
                raise Fault(FaultCode.NODE_NOT_REGISTERED, node=name)
            await transaction.touch_node(name, incarnation, None)
            held = await transaction.open_lease_of_node(name, incarnation)
            found = await transaction.candidates(node, limits=self._limits)
        if held is not None:
            # It asks although it has one: the answer that gave it was lost.
            return await self._given(held[1], held[0])
        if node.kind is TaskKind.EXPORT:
            given = await self._exports.given(name, incarnation)
            if given is not None:
                return given
        for candidate in queueing.in_order(found):
            lease = await self._try(node, candidate)
            if lease is not None:
                return lease
        # Runs first: somebody waits for their end, and they hold money.
        return await self._exports.offer(node) if node.kind is TaskKind.EXPORT else None

    async def _try(self, node: NodeRecord, candidate: Candidate) -> work_pb2.Lease | None:
        """Leases one task; None when another node was faster. URLs are signed before any lock."""
        async with self._store.transaction() as transaction:
            record, _ = await transaction.read_run(candidate.run)
        try:
            urls = await self._peers.sign_reads(wire_work.inputs_of(record))
        except Fault as fault:
            log.warning("inputs cannot be signed", run=candidate.run, code=fault.code)
            return None
        async with self._store.transaction() as transaction:
            locked = await transaction.lock_run_if_free(candidate.run)
            if locked is None:
                return None
            record, now = locked
            task = record.run.task
            if task.state is not TaskState.QUEUED or task.kind is not candidate.kind:
                return None
            if not urls.keys() >= set(wire_work.inputs_of(record)):
                # It was leased and given back since its URLs were signed, and reads more now.
                return None
            if task.kind is TaskKind.TRAIN:
                count = await transaction.lock_project(project_of(record.run.name))
                if count >= candidate.concurrency_limit:
                    return None
            signal = TaskLeased(
                kind=task.kind,
                lease_id=new_id("lease", now=now, random_bytes=secrets.token_bytes),
                node=node.name,
                incarnation=node.incarnation,
                lease=self._lease,
            )
            decision = decide(record.run, signal, now)
            await transaction.commit(decision)
            losses = await transaction.losses(record.run.name, last_step=_last_step(record))
            sealed = await transaction.hub_token(record.run.name)
        lease = decision.after.lease
        assert lease is not None
        log.info("task leased", run=record.run.name, node=node.name, epoch=lease.fencing_epoch)
        return self._lease_to_proto(record, lease, urls, losses, sealed=sealed)

    async def _given(self, run: str, lease: Lease) -> work_pb2.Lease:
        """A lease that was given before, with fresh URLs."""
        async with self._store.transaction() as transaction:
            record, _ = await transaction.read_run(run)
            losses = await transaction.losses(run, last_step=_last_step(record))
            sealed = await transaction.hub_token(run)
        urls = await self._peers.sign_reads(wire_work.inputs_of(record))
        return self._lease_to_proto(record, lease, urls, losses, sealed=sealed)

    def _lease_to_proto(
        self,
        record: Record,
        lease: Lease,
        urls: Mapping[str, str],
        losses: list[float],
        *,
        sealed: bytes | None,
    ) -> work_pb2.Lease:
        run = record.run.name
        hub_token = "" if sealed is None else self._sealer.open(sealed, owner=run)
        if hub_token is None:
            log.warning("hub token cannot be opened; the signing key is another one", run=run)
        return wire_work.lease_to_proto(
            record,
            lease,
            urls=urls,
            losses=losses,
            heartbeat_millis=self._heartbeat_millis,
            hub_token=hub_token or "",
        )

    def _reported(self, record: Record, lease: Lease, request: Any, now: datetime) -> Decision:
        """What the reports of a call do, each once; the call is a sign of life as well."""
        prefix = wire_work.output_prefix(record.run.name, lease.fencing_epoch)
        reports = wire_work.reports_from_proto(request.reports, prefix=prefix)
        signal = Heartbeat(fencing_epoch=lease.fencing_epoch, lease=self._lease, reports=reports)
        return decide(record.run, signal, now)

    async def _register(self, record: Record, outputs: Any) -> tuple[StoredFile, ...]:
        """Makes artifacts of the outputs that are ones; the hub checks size and sha256 of all.

        Files that are no artifacts are what an export reads: an adapter that is not there as it
        was said to be must not end a training well.
        """
        loose = wire_work.adapter_files(outputs)
        if loose:
            await self._peers.verify_objects(record.run.name, loose)
        spec = wire.parse(spec_pb2.RunSpec, record.submission.spec)
        stored = []
        for output in outputs:
            if output.artifact_kind:
                file = wire_work.artifact_file(record.run.name, output)
                name = await self._peers.register_artifact(
                    record.run.name, file, base_model=spec.base_model
                )
                stored.append(wire.stored_file(name, file))
        return tuple(stored)


async def lose(store: Store, run: str, lease: Lease, loss: Loss) -> bool:
    """Takes a lease from a node that is gone; False when that was no longer true."""
    async with store.transaction() as transaction:
        if loss is Loss.EXPIRED:
            locked = await transaction.lock_run_if_free(run)
            if locked is None:
                return False
        else:
            locked = await transaction.lock_run(run)
        record, now = locked
        held = record.run.lease
        if held is None or held.lease_id != lease.lease_id:
            return False
        if loss is Loss.EXPIRED and held.expire_time > now:
            return False
        signal = LeaseLost(fencing_epoch=held.fencing_epoch, loss=loss)
        await transaction.commit(decide(record.run, signal, now))
    log.warning("node lost", run=run, node=lease.node, loss=loss, attempt=lease.attempt)
    return True


async def _lock(transaction: Transaction, request: Any) -> tuple[Record, Lease, datetime]:
    """The run of a call's lease, locked, with the lease as it stands now.

    Raises:
        Fault: ACCESS_DENIED for the lease of another node; RUN_LEASE_LOST when it does not exist,
            shows another epoch, or was lost.
    """
    found = await transaction.lease_by_id(names.check_id(request.lease_id, field="lease_id"))
    if found is None:
        raise Fault(FaultCode.RUN_LEASE_LOST)
    lease, run = found
    current_caller().require_node(lease.node)
    if lease.fencing_epoch != request.fencing_epoch:
        raise Fault(FaultCode.RUN_LEASE_LOST, fencing_epoch=request.fencing_epoch)
    record, now = await transaction.lock_run(run)
    if record.run.lease is not None and record.run.lease.lease_id == lease.lease_id:
        return record, record.run.lease, now
    # It may have ended while we waited for the lock.
    found = await transaction.lease_by_id(request.lease_id)
    assert found is not None
    if found[0].outcome is Outcome.LOST:
        raise Fault(FaultCode.RUN_LEASE_LOST, fencing_epoch=request.fencing_epoch)
    return record, found[0], now


def _completed(
    lease: Lease,
    request: work_service_pb2.CompleteTaskRequest,
    files: tuple[StoredFile, ...],
) -> TrainingCompleted | ExportCompleted:
    if lease.kind is TaskKind.EXPORT:
        return ExportCompleted(
            fencing_epoch=lease.fencing_epoch,
            proofs=wire_work.pack_proofs(request.export),
            files=files,
        )
    metrics = None
    if request.train.HasField("metrics"):
        metrics = wire_work.metrics_from_proto(request.train.metrics)
    return TrainingCompleted(
        fencing_epoch=lease.fencing_epoch,
        metrics=metrics,
        samples=wire_work.pack_samples(request.train),
        adapter=wire_work.pack_files(wire_work.adapter_files(request.outputs)),
        files=files,
    )


def _directive(decision: Decision) -> work_service_pb2.HeartbeatTaskResponse:
    """What a node must do after its heartbeat."""
    run = decision.after
    lease = run.lease
    assert lease is not None
    response = work_service_pb2.HeartbeatTaskResponse(
        directive=work_service_pb2.DIRECTIVE_CONTINUE,
        expire_time=wire.timestamp(lease.expire_time),
        acknowledged_report_number=lease.report_number,
    )
    if run.finish is not None and lease.kind is TaskKind.TRAIN:
        response.directive = work_service_pb2.DIRECTIVE_FINISH
        response.reason = f"Training ends now and is kept: {run.finish.cause.lower()}."
    return response


def _farewell(lease: Lease) -> work_service_pb2.HeartbeatTaskResponse:
    """The answer to a heartbeat that comes after the end of its lease."""
    response = work_service_pb2.HeartbeatTaskResponse(
        directive=work_service_pb2.DIRECTIVE_ABORT,
        acknowledged_report_number=lease.report_number,
    )
    if lease.outcome in (Outcome.COMPLETED, Outcome.RELEASED):
        # It crossed with the call that ended the lease.
        response.directive = work_service_pb2.DIRECTIVE_CONTINUE
    elif lease.outcome is Outcome.CANCELLED:
        response.reason = _CANCELLED
    elif lease.fault is not None:
        response.reason = lease.fault.message
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


def _last_step(record: Record) -> int:
    """The step up to which losses belong to the adapter."""
    metrics = record.run.metrics
    return metrics.step if metrics else 0
