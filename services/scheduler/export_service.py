"""Exports for users: any type of any stored adapter, at any time."""

import secrets
from datetime import datetime
from typing import Any, Final

from chassis import idempotency, paging, telemetry
from chassis.identity import current_caller
from chassis.sealing import Sealer
from lexicon.faults import Fault, FaultCode
from lexicon.ids import new_id
from lexicon.names import ArtifactName, ExportName, ProjectName, RunName
from modelspec.artifact import (
    DEFAULT_QUANTIZATION,
    SMALL_FILES_BYTES,
    check_quantization,
    gguf_bytes_by_count,
)
from scheduler import wire, wire_exports
from scheduler.domain import exports, tasks
from scheduler.domain.exports import Export, ExportState, Source
from scheduler.domain.signals import CancelRequested
from scheduler.peers import Peers
from scheduler.store import Store, Transaction
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.export.v1 import export_service_pb2, export_service_pb2_grpc

log = telemetry.logger(__name__)

_DEFAULT_PAGE_SIZE: Final = 50
_NEWEST: Final = 2**62


class ExportService(export_service_pb2_grpc.ExportServiceServicer):
    """See the contract for each method."""

    def __init__(self, store: Store, peers: Peers, sealer: Sealer) -> None:
        self._store = store
        self._peers = peers
        self._sealer = sealer

    async def CreateExport(
        self, request: export_service_pb2.CreateExportRequest, _context: Any
    ) -> export_service_pb2.CreateExportResponse:
        name = ArtifactName.parse(request.artifact)
        current_caller().require_project(request.artifact)
        idempotency.check_request_id(request.request_id)
        quantization = check_quantization(request.quantization or DEFAULT_QUANTIZATION)
        async with self._store.transaction() as transaction:
            answer = await transaction.answers.peek(name.project, request, method="CreateExport")
        if answer is not None:
            return wire.parse(export_service_pb2.CreateExportResponse, answer)
        artifact = await self._peers.artifact(request.artifact)
        async with self._store.transaction() as transaction:
            source = await _source(transaction, name)
            is_under_way = await transaction.exports.open_of_type(request.artifact, quantization)
        if is_under_way is None:
            await self._check_room(artifact, source, quantization, replace=request.replace)
        return await self._create(request, name, source, quantization)

    async def GetExport(
        self, request: export_service_pb2.GetExportRequest, _context: Any
    ) -> export_service_pb2.GetExportResponse:
        _project(request.name)
        async with self._store.transaction() as transaction:
            export, _ = await transaction.exports.read(request.name)
        return export_service_pb2.GetExportResponse(export=wire_exports.export_to_proto(export))

    async def ListExports(
        self, request: export_service_pb2.ListExportsRequest, _context: Any
    ) -> export_service_pb2.ListExportsResponse:
        project = ProjectName.parse(request.parent).project
        current_caller().require_project(request.parent)
        artifact = str(ArtifactName.parse(request.artifact)) if request.artifact else ""
        if artifact:
            current_caller().require_project(artifact)
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        scope = f"exports {project} {artifact}"
        before = paging.read_token(request.page_token, scope=scope, first=_NEWEST)
        async with self._store.transaction() as transaction:
            found, positions = await transaction.exports.page(
                project, before=before, artifact=artifact, size=size
            )
        token = ""
        if len(found) == size:
            token = paging.make_token(scope=scope, position=positions[-1])
        return export_service_pb2.ListExportsResponse(
            exports=[wire_exports.export_to_proto(each) for each in found], next_page_token=token
        )

    async def CancelExport(
        self, request: export_service_pb2.CancelExportRequest, _context: Any
    ) -> export_service_pb2.CancelExportResponse:
        project = _project(request.name)
        async with self._store.transaction() as transaction:
            answer = await transaction.answers.recall(project, request, method="CancelExport")
            if answer is not None:
                return wire.parse(export_service_pb2.CancelExportResponse, answer)
            export, now = await transaction.exports.lock(request.name)
            if export.state is not ExportState.CANCELLED:
                after = exports.decide(export, CancelRequested(), now)
                changed = wire_exports.changed(export, after)
                await transaction.exports.commit(after, outgoing=changed)
                export = after
            response = export_service_pb2.CancelExportResponse(
                export=wire_exports.export_to_proto(export)
            )
            await transaction.answers.remember(project, request, response, method="CancelExport")
        return response

    async def _check_room(
        self,
        artifact: artifact_pb2.Artifact,
        source: Source,
        quantization: str,
        *,
        replace: bool,
    ) -> None:
        """Refuses what is there already or will not fit; the hub measures the bundle again.

        Raises:
            Fault: EXPORT_EXISTS, QUOTA_ARTIFACTS_EXCEEDED.
        """
        old = [file for file in artifact.files if file.quantization == quantization]
        if old and not replace:
            raise Fault(FaultCode.EXPORT_EXISTS, artifact=artifact.name, quantization=quantization)
        expected = gguf_bytes_by_count(wire_exports.parameter_count_of(source), quantization)
        usage = await self._peers.usage(artifact.name.split("/")[1])
        exports.check_room(
            required_bytes=expected + SMALL_FILES_BYTES,
            used_bytes=usage.artifact_bytes - sum(file.size_bytes for file in old),
            quota_bytes=usage.artifact_quota_bytes,
        )

    async def _create(
        self,
        request: export_service_pb2.CreateExportRequest,
        name: ArtifactName,
        source: Source,
        quantization: str,
    ) -> export_service_pb2.CreateExportResponse:
        """Writes export, event and answer in one transaction, or finds the one under way."""
        async with self._store.transaction() as transaction:
            answer = await transaction.answers.recall(name.project, request, method="CreateExport")
            if answer is not None:
                return wire.parse(export_service_pb2.CreateExportResponse, answer)
            # Two who ask at once come one after the other.
            await transaction.lock_project(name.project)
            export = await transaction.exports.open_of_type(str(name), quantization)
            if export is None:
                now = await transaction.now()
                export = _new_export(name, source, quantization, now=now)
                await transaction.exports.insert(export, outgoing=wire_exports.outgoing(export))
                if request.hub_token and wire_exports.is_from_hub(source):
                    sealed = self._sealer.seal(request.hub_token, owner=export.name)
                    await transaction.put_hub_token(export.name, sealed)
                log.info("export queued", export=export.name, artifact=str(name))
            response = export_service_pb2.CreateExportResponse(
                export=wire_exports.export_to_proto(export)
            )
            await transaction.answers.remember(
                name.project, request, response, method="CreateExport"
            )
        return response


def _new_export(name: ArtifactName, source: Source, quantization: str, *, now: datetime) -> Export:
    export_id = new_id("export", now=now, random_bytes=secrets.token_bytes)
    return Export(
        name=str(ExportName(project=name.project, export=export_id)),
        artifact=str(name),
        run=source.run,
        base_model=wire_exports.base_model_of(source),
        quantization=quantization,
        create_time=now,
        update_time=now,
        task=tasks.queued(exports.KIND, now),
        traceparent=telemetry.traceparent(),
    )


async def _source(transaction: Transaction, name: ArtifactName) -> Source:
    """What the adapter of a hub entry was made from.

    Raises:
        Fault: RUN_TRANSITION_ILLEGAL while its run is under way; EXPORT_ADAPTER_MISSING when no
            adapter of it is known.
    """
    source = await transaction.exports.source(str(name))
    if source is not None:
        return source
    # The hub entry of a run has the run's own id.
    run = str(RunName(project=name.project, run=name.artifact))
    try:
        record, _ = await transaction.read_run(run)
    except Fault:
        raise Fault(FaultCode.EXPORT_ADAPTER_MISSING, artifact=str(name)) from None
    if record.run.has_ended:
        raise Fault(FaultCode.EXPORT_ADAPTER_MISSING, artifact=str(name))
    raise Fault(
        FaultCode.RUN_TRANSITION_ILLEGAL,
        "The run is still under way; its adapter can be exported again once it has ended.",
        remedy="Wait for its end: tunesmith run watch " + name.artifact,
        state=record.run.state,
    )


def _project(name: str) -> str:
    """Project of an export that the caller may see.

    Raises:
        Fault: INPUT_NAME_INVALID, ACCESS_PROJECT_FORBIDDEN.
    """
    parsed = ExportName.parse(name)
    current_caller().require_project(name)
    return parsed.project
