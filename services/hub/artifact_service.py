"""ArtifactService and ObjectService: hub entries, downloads, quotas, URLs for services."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from chassis import idempotency, paging
from chassis.identity import current_caller
from hub import wire
from hub.answers import Context, QuotaOf, for_service, next_token
from hub.domain.artifacts import (
    Artifact,
    artifact_name,
    check_file,
    check_own,
    check_said,
    choose,
    export_folder,
    leftovers,
    output_folder,
)
from hub.domain.datasets import own_version
from hub.domain.quota import check_artifact_room
from hub.janitor import Janitor
from hub.links import Links
from hub.service import living_version
from hub.store import NEWEST, Store
from lexicon.faults import Fault, FaultCode
from lexicon.names import ArtifactName, ExportName, ProjectName, RunName
from objects.keys import key_of
from objects.store import ObjectInfo, ObjectStore
from tunesmith.api.artifact.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)

DEFAULT_PAGE: Final = 50
MAX_OBJECTS: Final = 1000
HEADS_AT_ONCE: Final = 16
# How long an upload may take that began before its URL expired.
UPLOAD_GRACE: Final = timedelta(hours=1)


class ArtifactService(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Hub entries, their downloads and the quotas; see the contract for each method."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        *,
        links: Links,
        janitor: Janitor,
        quota_of: QuotaOf,
    ) -> None:
        self._store = store
        self._objects = objects
        self._links = links
        self._janitor = janitor
        self._quota_of = quota_of

    async def GetArtifact(
        self, request: artifact_service_pb2.GetArtifactRequest, _context: Context
    ) -> artifact_service_pb2.GetArtifactResponse:
        artifact = await self._artifact(request.name)
        return artifact_service_pb2.GetArtifactResponse(
            artifact=wire.artifact_to_proto(artifact, with_uri=for_service())
        )

    async def ListArtifacts(
        self, request: artifact_service_pb2.ListArtifactsRequest, _context: Context
    ) -> artifact_service_pb2.ListArtifactsResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        run = str(RunName.parse(request.run)) if request.run else ""
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        scope = f"artifacts {parent} {run}"
        before = paging.read_token(request.page_token, scope=scope, first=NEWEST)
        async with self._store.unit() as unit:
            found = await unit.list_artifacts(
                parent.project, run=run, before_position=before, count=size + 1
            )
        page, with_uri = found[:size], for_service()
        return artifact_service_pb2.ListArtifactsResponse(
            artifacts=[wire.artifact_to_proto(each, with_uri=with_uri) for _, each in page],
            next_page_token=next_token(scope, page[-1][0]) if len(found) > size else "",
        )

    async def DeleteArtifact(
        self,
        request: artifact_service_pb2.DeleteArtifactRequest,
        _context: Context,
    ) -> artifact_service_pb2.DeleteArtifactResponse:
        name = ArtifactName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            await unit.lock_usage(name.project)
            known = await unit.answers.recall(name.project, request)
            if known is not None:
                return artifact_service_pb2.DeleteArtifactResponse()
            artifact = await unit.artifact(name)
            if artifact is None:
                raise Fault(FaultCode.ARTIFACT_NOT_FOUND, artifact=str(name))
            await unit.delete_artifact(artifact)
            # Delete the loose files of the adapter with the entry; nothing else would delete them.
            await unit.add_garbage(await self._objects.keys(output_folder(artifact.run)))
            await unit.answers.remember(name.project, request, b"")
        await self._janitor.tidy()
        return artifact_service_pb2.DeleteArtifactResponse()

    async def CreateDownload(
        self,
        request: artifact_service_pb2.CreateDownloadRequest,
        _context: Context,
    ) -> artifact_service_pb2.CreateDownloadResponse:
        artifact = await self._artifact(request.name)
        kind = wire.kind_from_proto(request.kind)
        file = choose(artifact, kind, quantization=request.quantization)
        link = self._links.get(file.object_key, file_name=file.file_name)
        return artifact_service_pb2.CreateDownloadResponse(
            url=link.url,
            expire_time=wire.timestamp(link.expire_time),
            file=wire.artifact_file_to_proto(file, with_uri=False),
        )

    async def GetStorageUsage(
        self,
        request: artifact_service_pb2.GetStorageUsageRequest,
        _context: Context,
    ) -> artifact_service_pb2.GetStorageUsageResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        quota = await self._quota_of(parent.project)
        async with self._store.unit() as unit:
            usage = await unit.usage(parent.project)
        return artifact_service_pb2.GetStorageUsageResponse(usage=wire.usage_to_proto(usage, quota))

    async def _artifact(self, text: str) -> Artifact:
        name = ArtifactName.parse(text)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            artifact = await unit.artifact(name)
        if artifact is None:
            raise Fault(FaultCode.ARTIFACT_NOT_FOUND, artifact=str(name))
        return artifact


class ObjectService(object_service_pb2_grpc.ObjectServiceServicer):
    """Signed URLs and registration for the other services; see the contract for each method."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        *,
        links: Links,
        janitor: Janitor,
        quota_of: QuotaOf,
    ) -> None:
        self._store = store
        self._objects = objects
        self._links = links
        self._janitor = janitor
        self._quota_of = quota_of

    async def SignObjects(
        self, request: object_service_pb2.SignObjectsRequest, _context: Context
    ) -> object_service_pb2.SignObjectsResponse:
        if not 0 < len(request.objects) <= MAX_OBJECTS:
            rule = f"objects must be 1 to {MAX_OBJECTS}."
            raise Fault(FaultCode.INPUT_FIELD_INVALID, rule, field="objects")
        return object_service_pb2.SignObjectsResponse(
            objects=[self._sign(each) for each in request.objects]
        )

    async def VerifyObjects(
        self, request: object_service_pb2.VerifyObjectsRequest, _context: Context
    ) -> object_service_pb2.VerifyObjectsResponse:
        run = RunName.parse(request.run)
        uris = [said.uri for said in request.objects]
        _check_count(uris, field="objects", at_least=1)
        keys = _own_keys(uris, run, field="objects.uri")
        gate = asyncio.Semaphore(HEADS_AT_ONCE)

        async def head(key: str) -> ObjectInfo | None:
            async with gate:
                return await self._objects.head(key)

        for said, info in zip(request.objects, await asyncio.gather(*map(head, keys)), strict=True):
            check_said(
                said.uri.rpartition("/")[2],
                said=(said.size_bytes, said.sha256),
                stored=(info.size_bytes, info.sha256) if info else None,
            )
        return object_service_pb2.VerifyObjectsResponse()

    async def RegisterArtifactFile(
        self,
        request: object_service_pb2.RegisterArtifactFileRequest,
        _context: Context,
    ) -> object_service_pb2.RegisterArtifactFileResponse:
        run = RunName.parse(request.run)
        idempotency.check_request_id(request.request_id)
        file = check_file(wire.artifact_file_from_proto(request.file))
        info = await self._objects.head(file.object_key)
        check_said(
            file.file_name,
            said=(file.size_bytes, file.sha256),
            stored=(info.size_bytes, info.sha256) if info else None,
        )
        quota = await self._quota_of(run.project)
        name = artifact_name(run)
        async with self._store.unit() as unit:
            usage = await unit.lock_usage(run.project)
            artifact = await unit.artifact(name)
            if artifact is None and request.existing_only:
                raise Fault(FaultCode.ARTIFACT_NOT_FOUND, artifact=str(name))
            files = artifact.files if artifact else ()
            old = next((each for each in files if each.is_same_place(file)), None)
            if old is None or old.sha256 != file.sha256:
                # A file that became garbage meanwhile is listed as garbage until it is deleted.
                is_garbage = await unit.is_garbage(file.object_key)
                if is_garbage or await self._objects.head(file.object_key) is None:
                    raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND, file=file.file_name)
                growth = file.size_bytes - (old.size_bytes if old else 0)
                check_artifact_room(usage, quota, new_bytes=growth)
                await unit.put_artifact_file(
                    name, run=run, base_model=request.base_model, file=file
                )
                await unit.change_usage(run.project, artifact_bytes=growth)
                await unit.add_garbage([old.object_key] if old else [])
                artifact = await unit.artifact(name)
        assert artifact is not None, name
        await self._janitor.tidy()
        return object_service_pb2.RegisterArtifactFileResponse(
            artifact=wire.artifact_to_proto(artifact, with_uri=True)
        )

    async def HoldDatasetVersions(
        self,
        request: object_service_pb2.HoldDatasetVersionsRequest,
        _context: Context,
    ) -> object_service_pb2.HoldDatasetVersionsResponse:
        run = RunName.parse(request.run)
        _check_count(request.versions, field="versions", at_least=1)
        versions = [own_version(text, run) for text in dict.fromkeys(request.versions)]
        async with self._store.unit() as unit:
            # The lock also prevents the deletion of the project's datasets meanwhile.
            await unit.lock_usage(run.project)
            known = await unit.answers.recall(run.project, request)
            if known is None:
                for name in versions:
                    if not await unit.is_held(run, name):
                        await living_version(unit, name)
                        await unit.hold_version(run, name)
                await unit.answers.remember(run.project, request, b"")
        return object_service_pb2.HoldDatasetVersionsResponse()

    async def DeleteRunLeftovers(
        self,
        request: object_service_pb2.DeleteRunLeftoversRequest,
        _context: Context,
    ) -> object_service_pb2.DeleteRunLeftoversResponse:
        run = RunName.parse(request.run)
        adapter = _own_keys(request.adapter_uris, run, field="adapter_uris")
        only = _own_keys(request.only_uris, run, field="only_uris")
        idempotency.check_request_id(request.request_id)
        stored = only or await self._objects.keys(output_folder(run))
        async with self._store.unit() as unit:
            # Under the lock of registration: a file is an artifact by now, or will not be one.
            await unit.lock_usage(run.project)
            known = await unit.answers.recall(run.project, request)
            if known is not None:
                return object_service_pb2.DeleteRunLeftoversResponse.FromString(known)
            unneeded = leftovers(stored, await unit.artifact(artifact_name(run)), adapter=adapter)
            await unit.add_garbage(unneeded)
            if not only:
                await unit.release_versions(run)
            response = object_service_pb2.DeleteRunLeftoversResponse(removed_count=len(unneeded))
            response.again_after.FromTimedelta(self._links.lifetime + UPLOAD_GRACE)
            answer = response.SerializeToString()
            await unit.answers.remember(run.project, request, answer)
        await self._janitor.tidy()
        return response

    async def DeleteExportLeftovers(
        self,
        request: object_service_pb2.DeleteExportLeftoversRequest,
        _context: Context,
    ) -> object_service_pb2.DeleteExportLeftoversResponse:
        export = ExportName.parse(request.export)
        idempotency.check_request_id(request.request_id)
        stored = await self._objects.keys(export_folder(export))
        async with self._store.unit() as unit:
            # Under the lock of registration: a file is an artifact by now, or will not be one.
            await unit.lock_usage(export.project)
            known = await unit.answers.recall(export.project, request)
            if known is not None:
                return object_service_pb2.DeleteExportLeftoversResponse.FromString(known)
            registered = await unit.registered_keys(stored)
            unneeded = [key for key in stored if key not in registered]
            await unit.add_garbage(unneeded)
            response = object_service_pb2.DeleteExportLeftoversResponse(removed_count=len(unneeded))
            response.again_after.FromTimedelta(self._links.lifetime + UPLOAD_GRACE)
            answer = response.SerializeToString()
            await unit.answers.remember(export.project, request, answer)
        await self._janitor.tidy()
        return response

    def _sign(self, each: object_service_pb2.ObjectRequest) -> object_service_pb2.SignedObject:
        key = key_of(each.uri)
        match each.method:
            case object_service_pb2.OBJECT_METHOD_GET:
                link = self._links.get(key)
            case object_service_pb2.OBJECT_METHOD_PUT:
                link = self._links.put(key, size_bytes=each.size_bytes or None)
            case _:
                raise Fault(
                    FaultCode.INPUT_FIELD_MISSING, "method is required.", field="objects.method"
                )
        return object_service_pb2.SignedObject(
            uri=each.uri, url=link.url, expire_time=wire.timestamp(link.expire_time)
        )


def _check_count(given: Sequence[str], *, field: str, at_least: int) -> None:
    if not at_least <= len(given) <= MAX_OBJECTS:
        rule = f"{field} must be {at_least} to {MAX_OBJECTS}."
        raise Fault(FaultCode.INPUT_FIELD_INVALID, rule, field=field)


def _own_keys(uris: Sequence[str], run: RunName, *, field: str) -> list[str]:
    """The keys of URIs, all of them in the run's own folder."""
    _check_count(uris, field=field, at_least=0)
    keys = [key_of(uri) for uri in uris]
    check_own(keys, run, field=field)
    return keys
