"""The two kinds of task of a run: its training and its own export."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

from scheduler import events, wire, wire_exports, wire_work
from scheduler.domain import queueing
from scheduler.domain.decision import decide
from scheduler.domain.exports import Source
from scheduler.domain.node import NodeRecord
from scheduler.domain.run import Record, StoredFile
from scheduler.domain.signals import ExportCompleted, Signal, TrainingCompleted
from scheduler.domain.tasks import Lease, LeaseOutcome, TaskKind
from scheduler.kinds import About, Kind, Lock
from scheduler.peers import Peers
from scheduler.rows import project_of
from scheduler.store import Transaction
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

_Request: TypeAlias = work_service_pb2.CompleteTaskRequest

_CANCELLED: Final = "The run was cancelled."


class Runs:
    """Runs as owners of tasks."""

    async def load(
        self, transaction: Transaction, name: str, lock: Lock
    ) -> tuple[Record, datetime] | None:
        match lock:
            case Lock.NONE:
                return await transaction.read_run(name)
            case Lock.WAIT:
                return await transaction.lock_run(name)
            case Lock.IF_FREE:
                return await transaction.lock_run_if_free(name)

    async def commit(
        self, transaction: Transaction, owner: Record, signal: Signal, now: datetime
    ) -> Record:
        decision = decide(owner.run, signal, now)
        await transaction.commit(decision, outgoing=events.outgoing(decision))
        version = owner.run.version + decision.changes
        return replace(owner, run=replace(decision.after, version=version))

    async def same_oom_count(self, transaction: Transaction, owner: Record) -> int:
        fingerprint = owner.submission.fingerprint
        return await transaction.same_oom_count(project_of(owner.name), fingerprint)

    def about(self, owner: Record) -> About:
        run = owner.run
        finish = ""
        if run.finish is not None and run.task.kind == TaskKind.TRAIN:
            finish = f"Training ends now and is kept: {run.finish.cause.lower()}."
        return About(
            run=run.name,
            folder=f"object://runs/{run.name.rpartition('/')[2]}/",
            stage=run.stage,
            traceparent=run.traceparent,
            fingerprint=owner.submission.fingerprint,
            finish=finish,
        )

    def farewell(self, owner: Record, lease: Lease) -> str:
        if lease.outcome is LeaseOutcome.CANCELLED:
            return _CANCELLED
        return lease.fault.message if lease.fault else ""


def training(peers: Peers, *, limits: Mapping[str, int]) -> Kind[Record]:
    """A trainer makes the adapter: the only kind that a plan bounds, and that is paid for.

    Args:
        limits: how many runs each plan may train at once.
    """

    async def admits(transaction: Transaction, owner: Record) -> bool:
        count = await transaction.lock_project(project_of(owner.name))
        return count < limits.get(owner.submission.plan, 0)

    async def inputs(_transaction: Transaction, owner: Record) -> list[str]:
        return wire_work.train_inputs(owner)

    async def payload(
        _transaction: Transaction, owner: Record, urls: Mapping[str, str], hub_token: str
    ) -> work_pb2.Lease:
        return work_pb2.Lease(train=wire_work.train_task(owner, urls=urls, hub_token=hub_token))

    async def complete(transaction: Transaction, owner: Record, request: _Request) -> Record:
        metrics = None
        if request.train.HasField("metrics"):
            metrics = wire_work.metrics_from_proto(request.train.metrics)
        signal = TrainingCompleted(
            fencing_epoch=owner.run.fencing_epoch,
            files=await _register(peers, owner, request.outputs),
            metrics=metrics,
            samples=wire_work.pack_samples(request.train),
            adapter=wire_work.pack_files(wire_work.adapter_files(request.outputs)),
        )
        return await Runs().commit(transaction, owner, signal, await transaction.now())

    return Kind(
        worker=TaskKind.TRAIN,
        owners=Runs(),
        candidates=partial(_candidates, limits),
        inputs=inputs,
        payload=payload,
        complete=complete,
        admits=admits,
    )


def run_export(peers: Peers) -> Kind[Record]:
    """An exporter makes the GGUF files that a run asked for."""

    async def inputs(_transaction: Transaction, owner: Record) -> list[str]:
        return wire_exports.inputs_of(_source(owner))

    async def payload(
        transaction: Transaction, owner: Record, urls: Mapping[str, str], hub_token: str
    ) -> work_pb2.Lease:
        metrics = owner.run.metrics
        # Later steps belong to an attempt that was lost.
        last_step = metrics.step if metrics else 0
        losses = await transaction.losses(owner.name, last_step=last_step)
        source = replace(_source(owner), losses=tuple(losses))
        snapshot = wire.parse(run_pb2.RunSnapshot, source.snapshot)
        wanted = snapshot.export.quantizations
        task = wire_exports.export_task(source, wanted, urls=urls, hub_token=hub_token)
        return work_pb2.Lease(export=task)

    async def complete(transaction: Transaction, owner: Record, request: _Request) -> Record:
        signal = ExportCompleted(
            fencing_epoch=owner.run.fencing_epoch,
            proofs=wire_work.pack_proofs(request.export),
            files=await _register(peers, owner, request.outputs),
        )
        return await Runs().commit(transaction, owner, signal, await transaction.now())

    return Kind(
        worker=TaskKind.EXPORT,
        owners=Runs(),
        candidates=partial(_candidates, {}),
        inputs=inputs,
        payload=payload,
        complete=complete,
    )


async def _candidates(
    limits: Mapping[str, int], transaction: Transaction, node: NodeRecord
) -> Sequence[str]:
    capabilities = wire_work.capabilities_of(node)
    found = await transaction.candidates(node, capabilities=capabilities, limits=limits)
    return [candidate.run for candidate in queueing.in_order(found)]


async def _register(
    peers: Peers, owner: Record, outputs: Sequence[work_pb2.OutputFile]
) -> tuple[StoredFile, ...]:
    """Makes artifacts of the outputs that are ones; the hub checks size and sha256 of all.

    Files that are no artifacts are what an export reads: an adapter that is not there as it was
    said to be must not end a training well.
    """
    loose = wire_work.adapter_files(outputs)
    if loose:
        await peers.verify_objects(owner.name, loose)
    spec = wire.parse(spec_pb2.RunSpec, owner.submission.spec)
    stored = []
    for output in outputs:
        if output.artifact_kind:
            file = wire_work.artifact_file(owner.name, output)
            name = await peers.register_artifact(owner.name, file, base_model=spec.base_model)
            stored.append(wire.stored_file(name, file))
    return tuple(stored)


def _source(owner: Record) -> Source:
    """What the adapter of a run was made from, as it is kept for later exports too."""
    return Source(
        artifact=owner.run.artifact,
        run=owner.name,
        spec=owner.submission.spec,
        snapshot=owner.submission.snapshot,
        inputs=owner.submission.inputs,
        adapter=owner.run.adapter,
        losses=(),
    )
