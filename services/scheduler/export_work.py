"""Work of exports for exporters: offer, heartbeat, outputs, the end of a lease.

The calls are those of every lease; which machine stands behind one is said by the prefix of its id.
"""

import secrets
from datetime import datetime, timedelta
from typing import Any

from chassis import errors, telemetry
from chassis.identity import current_caller
from chassis.sealing import Sealer
from lexicon.faults import Fault, FaultCode, Stage
from lexicon.ids import new_id
from scheduler import wire, wire_exports, wire_work
from scheduler.alerts import Alerts
from scheduler.domain import exports
from scheduler.domain.exports import (
    ArtifactGone,
    Export,
    ExportLease,
    ExportSignal,
    ExportState,
    Failed,
    Heard,
    Leased,
    Lost,
    Released,
    Source,
    Stored,
)
from scheduler.domain.run import Outcome
from scheduler.domain.signals import Loss
from scheduler.peers import Peers
from scheduler.store import Store, Transaction
from scheduler.wire_work import NodeRecord
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

log = telemetry.logger(__name__)

# What the hub may say of a finished bundle that no further attempt will change.
_FINAL_REFUSALS = frozenset({FaultCode.ARTIFACT_NOT_FOUND, FaultCode.QUOTA_ARTIFACTS_EXCEEDED})


def is_export(lease_id: str) -> bool:
    """Whether a lease is one of an export."""
    return lease_id.startswith(f"{wire_exports.LEASE_PREFIX}-")


class ExportWork:
    """The exports' side of WorkService."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        sealer: Sealer,
        alerts: Alerts,
        *,
        lease: timedelta,
        heartbeat_millis: int,
    ) -> None:
        self._store = store
        self._peers = peers
        self._sealer = sealer
        self._alerts = alerts
        self._lease = lease
        self._heartbeat_millis = heartbeat_millis

    async def forget_old(self, node: str, incarnation: str) -> None:
        """Takes what an earlier process of a node held."""
        async with self._store.transaction() as transaction:
            old = await transaction.exports.of_old_incarnations(node, incarnation)
        for name, lease_id in old:
            await lose_export(self._store, name, lease_id, Loss.RESTARTED)

    async def given(self, node: str, incarnation: str) -> work_pb2.Lease | None:
        """The lease that a node holds, when the answer that gave it was lost; None without one."""
        async with self._store.transaction() as transaction:
            name = await transaction.exports.of_node(node, incarnation)
            if name is None:
                return None
            export, _ = await transaction.exports.read(name)
            source = await _source(transaction, export)
        lease = export.open_lease
        urls = await self._peers.sign_reads(wire_exports.inputs_of(source))
        return None if lease is None else await self._to_proto(export, lease, source, urls)

    async def offer(self, node: NodeRecord) -> work_pb2.Lease | None:
        """The lease that a node gets now, None when there is no export to make."""
        async with self._store.transaction() as transaction:
            names = await transaction.exports.queued()
        for name in names:
            lease = await self._try(node, name)
            if lease is not None:
                return lease
        return None

    async def heartbeat(
        self, request: work_service_pb2.HeartbeatTaskRequest
    ) -> work_service_pb2.HeartbeatTaskResponse:
        """Prolongs a lease; of what an export reports on its way its activity is kept."""
        newest = max((report.report_number for report in request.reports), default=0)
        async with self._store.transaction() as transaction:
            export, lease, now = await _lock(transaction, request)
            response = work_service_pb2.HeartbeatTaskResponse(
                directive=work_service_pb2.DIRECTIVE_CONTINUE, acknowledged_report_number=newest
            )
            if lease.outcome is not None:
                if lease.outcome not in (Outcome.COMPLETED, Outcome.RELEASED):
                    response.directive = work_service_pb2.DIRECTIVE_ABORT
                    response.reason = f"The export is {export.state.lower()}."
                return response
            signal = Heard(
                fencing_epoch=lease.fencing_epoch,
                lease=self._lease,
                activity=wire_exports.activity_of(request.reports),
            )
            after = await _commit(transaction, export, signal, now)
            assert after.lease is not None
            response.expire_time.FromDatetime(after.lease.expire_time)
            await transaction.touch_node(lease.node, lease.incarnation, None)
        return response

    async def sign_inputs(
        self, request: work_service_pb2.SignInputsRequest
    ) -> work_service_pb2.SignInputsResponse:
        """What the task reads, with fresh URLs."""
        async with self._store.transaction() as transaction:
            export, lease, _ = await _lock(transaction, request)
            exports.held(export, fencing_epoch=lease.fencing_epoch)
            source = await _source(transaction, export)
        urls = await self._peers.sign_reads(wire_exports.inputs_of(source))
        given = await self._to_proto(export, lease, source, urls)
        return work_service_pb2.SignInputsResponse(files=wire_work.files_of(given))

    async def sign_outputs(
        self, request: work_service_pb2.SignOutputsRequest
    ) -> work_service_pb2.SignOutputsResponse:
        """Where each output goes, in the order of the request."""
        async with self._store.transaction() as transaction:
            export, lease, _ = await _lock(transaction, request)
            exports.held(export, fencing_epoch=lease.fencing_epoch)
        prefix = wire_exports.output_prefix(export, lease.fencing_epoch)
        uris = [wire_work.output_uri(file, prefix=prefix) for file in request.files]
        sizes = [file.size_bytes for file in request.files]
        urls = await self._peers.sign_writes(dict(zip(uris, sizes, strict=True)))
        return work_service_pb2.SignOutputsResponse(
            outputs=[
                work_service_pb2.SignedOutput(path=file.path, uri=uri, url=urls[uri])
                for file, uri in zip(request.files, uris, strict=True)
            ]
        )

    async def complete(self, request: work_service_pb2.CompleteTaskRequest) -> None:
        """Puts the bundle into the hub entry; a hub that will never take it ends the export."""
        async with self._store.transaction() as transaction:
            export, lease, now = await _lock(transaction, request)
            if lease.outcome is Outcome.COMPLETED:
                return
            exports.held(export, fencing_epoch=lease.fencing_epoch)
            prefix = wire_exports.output_prefix(export, lease.fencing_epoch)
            output = wire_exports.bundle_of(request, export, prefix=prefix)
            file = wire_work.artifact_file(export.run, output)
            signal: ExportSignal
            try:
                # The row stays locked meanwhile, so that a cancelled export adds nothing.
                await self._peers.register_artifact(
                    export.run, file, base_model=export.base_model, existing_only=True
                )
                signal = Stored(
                    fencing_epoch=lease.fencing_epoch,
                    file=file.SerializeToString(),
                    proof=wire_exports.proof_of(request),
                )
            except Fault as fault:
                if fault.code not in _FINAL_REFUSALS:
                    raise
                signal = _refusal(fault, lease)
            after = await _commit(transaction, export, signal, now)
        log.info("export ended", export=after.name, state=after.state)

    async def fail(self, request: work_service_pb2.FailTaskRequest) -> None:
        """Ends an attempt badly."""
        async with self._store.transaction() as transaction:
            export, lease, now = await _lock(transaction, request)
            if lease.outcome is not Outcome.FAILED:
                fault = wire.fault_from_proto(request.fault, stage=Stage.EXPORTING, node=lease.node)
                signal = Failed(fencing_epoch=lease.fencing_epoch, fault=fault)
                await _commit(transaction, export, signal, now)
                await self._alerts.note_export(transaction, export, fault)
                log.warning("export attempt failed", export=export.name, code=fault.code)

    async def release(self, request: work_service_pb2.ReleaseTaskRequest) -> None:
        """Takes a lease back unharmed."""
        async with self._store.transaction() as transaction:
            export, lease, now = await _lock(transaction, request)
            if lease.outcome is not Outcome.RELEASED:
                signal = Released(fencing_epoch=lease.fencing_epoch)
                await _commit(transaction, export, signal, now)

    async def _try(self, node: NodeRecord, name: str) -> work_pb2.Lease | None:
        """Leases one export; None when it cannot be had. The hub is asked before any lock."""
        async with self._store.transaction() as transaction:
            export, _ = await transaction.exports.read(name)
            source = await _source(transaction, export)
        try:
            await self._peers.artifact(export.artifact)
            urls = await self._peers.sign_reads(wire_exports.inputs_of(source))
        except Fault as fault:
            if fault.code is FaultCode.ARTIFACT_NOT_FOUND:
                await self._give_up(name)
            else:
                log.warning("inputs cannot be signed", export=name, code=fault.code)
            return None
        async with self._store.transaction() as transaction:
            locked = await transaction.exports.lock_if_free(name)
            if locked is None or locked[0].state is not ExportState.QUEUED:
                return None
            export, now = locked
            lease_id = new_id(wire_exports.LEASE_PREFIX, now=now, random_bytes=secrets.token_bytes)
            signal = Leased(
                lease_id=lease_id,
                node=node.name,
                incarnation=node.incarnation,
                lease=self._lease,
            )
            export = await _commit(transaction, export, signal, now)
        lease = export.open_lease
        assert lease is not None
        log.info("export leased", export=name, node=node.name, epoch=lease.fencing_epoch)
        return await self._to_proto(export, lease, source, urls)

    async def _give_up(self, name: str) -> None:
        """Ends an export whose hub entry was deleted."""
        async with self._store.transaction() as transaction:
            locked = await transaction.exports.lock_if_free(name)
            if locked is not None and not locked[0].has_ended:
                await _commit(transaction, locked[0], ArtifactGone(), locked[1])

    async def _to_proto(
        self, export: Export, lease: ExportLease, source: Source, urls: dict[str, str]
    ) -> work_pb2.Lease:
        async with self._store.transaction() as transaction:
            sealed = await transaction.exports.hub_token(export.name)
        token = "" if sealed is None else self._sealer.open(sealed, owner=export.name)
        if token is None:
            log.warning("hub token cannot be opened", export=export.name)
        return wire_exports.lease_to_proto(
            export,
            lease,
            source,
            urls=urls,
            heartbeat_millis=self._heartbeat_millis,
            hub_token=token or "",
        )


async def lose_export(store: Store, name: str, lease_id: str, loss: Loss) -> bool:
    """Takes an export from a node that is gone; False when that was no longer true."""
    async with store.transaction() as transaction:
        if loss is Loss.EXPIRED:
            locked = await transaction.exports.lock_if_free(name)
            if locked is None:
                return False
        else:
            locked = await transaction.exports.lock(name)
        export, now = locked
        held = export.open_lease
        if held is None or held.lease_id != lease_id:
            return False
        if loss is Loss.EXPIRED and held.expire_time > now:
            return False
        await _commit(transaction, export, Lost(fencing_epoch=held.fencing_epoch), now)
    log.warning("exporter lost", export=name, node=held.node, loss=loss, attempt=held.attempt)
    return True


async def _commit(
    transaction: Transaction, export: Export, signal: ExportSignal, now: datetime
) -> Export:
    after = exports.decide(export, signal, now)
    await transaction.exports.commit(export, after)
    if after.state is ExportState.QUEUED:
        await transaction.wake_exporters()
    return after


async def _lock(transaction: Transaction, request: Any) -> tuple[Export, ExportLease, datetime]:
    """The export of a call's lease, locked, with that lease.

    Raises:
        Fault: ACCESS_DENIED for the lease of another node; RUN_LEASE_LOST when it is not the
            newest, shows another epoch, or was lost.
    """
    export, now = await transaction.exports.lock_of_lease(request.lease_id)
    lease = export.lease
    assert lease is not None
    current_caller().require_node(lease.node)
    if lease.fencing_epoch != request.fencing_epoch or lease.outcome is Outcome.LOST:
        raise Fault(FaultCode.RUN_LEASE_LOST, fencing_epoch=request.fencing_epoch)
    return export, lease, now


async def _source(transaction: Transaction, export: Export) -> Source:
    source = await transaction.exports.source(export.artifact)
    assert source is not None, "an export refers to its source"
    return source


def _refusal(fault: Fault, lease: ExportLease) -> ExportSignal:
    if fault.code is FaultCode.ARTIFACT_NOT_FOUND:
        return ArtifactGone()
    proto = errors.fault_to_proto(fault)
    told = wire.fault_from_proto(proto, stage=Stage.EXPORTING, node=lease.node)
    return Failed(fencing_epoch=lease.fencing_epoch, fault=told)
