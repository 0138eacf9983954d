"""The kind of task of an export of a stored adapter: one type of GGUF, into an existing entry."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from chassis import errors, telemetry
from lexicon.faults import Fault, FaultCode, Stage
from scheduler import wire, wire_exports, wire_work
from scheduler.domain import exports
from scheduler.domain.exports import ArtifactGone, Export, ExportSignal, ExportStored, Source
from scheduler.domain.node import NodeRecord
from scheduler.domain.signals import TaskFailed
from scheduler.domain.tasks import Lease, TaskKind
from scheduler.kinds import About, Kind, Lock
from scheduler.peers import Peers
from scheduler.store import Transaction
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

log = telemetry.logger(__name__)

# What the hub may say of a finished bundle that no further attempt will change.
_FINAL_REFUSALS: Final = frozenset(
    {FaultCode.ARTIFACT_NOT_FOUND, FaultCode.QUOTA_ARTIFACTS_EXCEEDED}
)


class Exports:
    """Exports as owners of tasks."""

    async def load(
        self, transaction: Transaction, name: str, lock: Lock
    ) -> tuple[Export, datetime] | None:
        match lock:
            case Lock.NONE:
                return await transaction.exports.read(name)
            case Lock.WAIT:
                return await transaction.exports.lock(name)
            case Lock.IF_FREE:
                return await transaction.exports.lock_if_free(name)

    async def commit(
        self, transaction: Transaction, owner: Export, signal: ExportSignal, now: datetime
    ) -> Export:
        after = exports.decide(owner, signal, now)
        await transaction.exports.commit(after, outgoing=wire_exports.changed(owner, after))
        if after.has_ended:
            log.info("export ended", export=after.name, state=after.state)
        return after

    async def same_oom_count(self, transaction: Transaction, owner: Export) -> int:
        return 0

    def about(self, owner: Export) -> About:
        return About(
            run=owner.run,
            # Apart from the run's own folder, which is swept.
            folder=f"object://exports/{owner.name.rpartition('/')[2]}/",
            stage=Stage.EXPORTING,
            traceparent=owner.traceparent,
        )

    def farewell(self, owner: Export, lease: Lease) -> str:
        return f"The export is {owner.state.lower()}."


def stored_export(peers: Peers) -> Kind[Export]:
    """An exporter makes one type of an adapter that a hub entry holds."""

    async def candidates(transaction: Transaction, node: NodeRecord) -> Sequence[str]:
        return await transaction.tasks.queued(exports.KIND, tier=node.tier)

    async def check(owner: Export) -> None:
        await peers.artifact(owner.artifact)

    async def complete(
        transaction: Transaction, owner: Export, request: work_service_pb2.CompleteTaskRequest
    ) -> Export:
        signal = await _stored(peers, owner, request)
        return await Exports().commit(transaction, owner, signal, await transaction.now())

    return Kind(
        worker=TaskKind.EXPORT,
        owners=Exports(),
        candidates=candidates,
        inputs=_inputs,
        payload=_payload,
        complete=complete,
        check=check,
        give_up=_give_up,
    )


async def _give_up(transaction: Transaction, owner: Export, fault: Fault, now: datetime) -> bool:
    """Ends an export whose hub entry was deleted."""
    if fault.code is not FaultCode.ARTIFACT_NOT_FOUND or owner.has_ended:
        return False
    await Exports().commit(transaction, owner, ArtifactGone(), now)
    return True


async def _inputs(transaction: Transaction, owner: Export) -> list[str]:
    return wire_exports.inputs_of(await _source(transaction, owner))


async def _payload(
    transaction: Transaction, owner: Export, urls: Mapping[str, str], hub_token: str
) -> work_pb2.Lease:
    source = await _source(transaction, owner)
    wanted = [owner.quantization]
    task = wire_exports.export_task(source, wanted, urls=urls, hub_token=hub_token)
    return work_pb2.Lease(export=task)


async def _stored(
    peers: Peers, owner: Export, request: work_service_pb2.CompleteTaskRequest
) -> ExportSignal:
    """Puts the bundle into the hub entry; a hub that will never take it ends the export."""
    file = wire_work.artifact_file(owner.run, wire_exports.bundle_of(request, owner))
    epoch = owner.task.fencing_epoch
    try:
        await peers.register_artifact(
            owner.run, file, base_model=owner.base_model, existing_only=True
        )
    except Fault as fault:
        if fault.code not in _FINAL_REFUSALS:
            raise
        return _refusal(fault, owner)
    proof = wire_exports.proof_of(request)
    return ExportStored(fencing_epoch=epoch, file=file.SerializeToString(), proof=proof)


async def _source(transaction: Transaction, export: Export) -> Source:
    source = await transaction.exports.source(export.artifact)
    assert source is not None, "an export refers to its source"
    return source


def _refusal(fault: Fault, export: Export) -> ExportSignal:
    if fault.code is FaultCode.ARTIFACT_NOT_FOUND:
        return ArtifactGone()
    node = export.task.lease.node if export.task.lease else ""
    proto = errors.fault_to_proto(fault)
    failed = wire.fault_from_proto(proto, stage=Stage.EXPORTING, node=node)
    return TaskFailed(fencing_epoch=export.task.fencing_epoch, fault=failed)
