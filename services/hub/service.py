"""DatasetService: datasets and their versions as callers see them."""

from collections.abc import Callable
from typing import Final

from chassis import idempotency, paging
from chassis.identity import current_caller
from hub import wire
from hub.answers import Context, QuotaOf, for_service, next_token
from hub.domain.datasets import Dataset, Upload, UploadState, Version, alive, announcement
from hub.domain.labels import similar
from hub.domain.quota import check_dataset_room
from hub.intake import Intake
from hub.janitor import Janitor
from hub.links import Link, Links
from hub.store import NEWEST, NEWEST_VERSION, Store, Unit
from lexicon.faults import Fault, FaultCode
from lexicon.names import DatasetName, DatasetVersionName, ProjectName, check_id
from tunesmith.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc

DEFAULT_PAGE: Final = 50
DEFAULT_PREVIEW_ROWS: Final = 5
MAX_PREVIEW_ROWS: Final = 100


class DatasetService(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Datasets and their versions; see the contract for each method."""

    def __init__(
        self,
        store: Store,
        *,
        links: Links,
        intake: Intake,
        janitor: Janitor,
        quota_of: QuotaOf,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._links = links
        self._intake = intake
        self._janitor = janitor
        self._quota_of = quota_of
        self._new_id = new_id

    async def CreateUpload(
        self, request: dataset_service_pb2.CreateUploadRequest, _context: Context
    ) -> dataset_service_pb2.CreateUploadResponse:
        project = ProjectName.parse(request.parent).project
        current_caller().require_project(project)
        announced = announcement(
            wire.dataset_name(project=project, dataset_id=request.dataset_id),
            size_bytes=request.size_bytes,
            sha256=request.sha256,
            file_name=request.file_name,
            display_name=request.display_name,
        )
        quota = await self._quota_of(project)
        async with self._store.unit() as unit:
            usage = await unit.lock_usage(project)
            known = await unit.answers.recall(project, request)
            upload_id = known.decode() if known else self._new_id()
            object_key = f"datasets/{upload_id}"
            link = self._links.put(object_key, size_bytes=announced.size_bytes)
            if known:
                await unit.prolong_upload(upload_id, expire_time=link.expire_time)
                return _upload_response(upload_id, link)
            pending = await unit.pending_bytes(project)
            check_dataset_room(usage, quota, pending_bytes=pending, new_bytes=announced.size_bytes)
            upload = Upload(
                upload_id=upload_id,
                announced=announced,
                object_key=object_key,
                state=UploadState.PENDING,
                expire_time=link.expire_time,
                version=None,
                refusal=None,
            )
            await unit.insert_upload(upload)
            await unit.answers.remember(project, request, upload_id.encode())
        return _upload_response(upload_id, link)

    async def CommitUpload(
        self, request: dataset_service_pb2.CommitUploadRequest, _context: Context
    ) -> dataset_service_pb2.CommitUploadResponse:
        project = ProjectName.parse(request.parent).project
        current_caller().require_project(project)
        idempotency.check_request_id(request.request_id)
        upload = await self._upload(request.upload_id, project=project)
        if upload.state is UploadState.PENDING:
            await self._intake.finish(upload)
            upload = await self._upload(request.upload_id, project=project)
        return await self._committed(upload)

    async def GetDataset(
        self, request: dataset_service_pb2.GetDatasetRequest, _context: Context
    ) -> dataset_service_pb2.GetDatasetResponse:
        name = DatasetName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            dataset = await _alive(unit, name)
        return dataset_service_pb2.GetDatasetResponse(
            dataset=wire.dataset_to_proto(dataset, with_uri=for_service())
        )

    async def ListDatasets(
        self, request: dataset_service_pb2.ListDatasetsRequest, _context: Context
    ) -> dataset_service_pb2.ListDatasetsResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        scope = f"datasets {parent}"
        before = paging.read_token(request.page_token, scope=scope, first=NEWEST)
        async with self._store.unit() as unit:
            found = await unit.list_datasets(parent.project, before_position=before, count=size + 1)
        page, with_uri = found[:size], for_service()
        return dataset_service_pb2.ListDatasetsResponse(
            datasets=[wire.dataset_to_proto(each, with_uri=with_uri) for _, each in page],
            next_page_token=next_token(scope, page[-1][0]) if len(found) > size else "",
        )

    async def GetDatasetVersion(
        self,
        request: dataset_service_pb2.GetDatasetVersionRequest,
        _context: Context,
    ) -> dataset_service_pb2.GetDatasetVersionResponse:
        name = DatasetVersionName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            version = await living_version(unit, name)
        return dataset_service_pb2.GetDatasetVersionResponse(
            version=wire.version_to_proto(version, with_uri=for_service())
        )

    async def ListDatasetVersions(
        self,
        request: dataset_service_pb2.ListDatasetVersionsRequest,
        _context: Context,
    ) -> dataset_service_pb2.ListDatasetVersionsResponse:
        name = DatasetName.parse(request.parent)
        current_caller().require_project(name)
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        scope = f"versions {name}"
        before = paging.read_token(request.page_token, scope=scope, first=NEWEST_VERSION)
        async with self._store.unit() as unit:
            await _alive(unit, name)
            found = await unit.list_versions(name, before_version=before, count=size + 1)
        page, with_uri = found[:size], for_service()
        return dataset_service_pb2.ListDatasetVersionsResponse(
            versions=[wire.version_to_proto(each, with_uri=with_uri) for each in page],
            next_page_token=next_token(scope, page[-1].name.number) if len(found) > size else "",
        )

    async def DeleteDataset(
        self, request: dataset_service_pb2.DeleteDatasetRequest, _context: Context
    ) -> dataset_service_pb2.DeleteDatasetResponse:
        name = DatasetName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            await unit.lock_usage(name.project)
            known = await unit.answers.recall(name.project, request)
            if known is not None:
                return dataset_service_pb2.DeleteDatasetResponse.FromString(known)
            await _alive(unit, name)
            delete_time = await unit.delete_dataset(name)
            assert delete_time is not None, name
            response = dataset_service_pb2.DeleteDatasetResponse(
                delete_time=wire.timestamp(delete_time)
            )
            answer = response.SerializeToString()
            await unit.answers.remember(name.project, request, answer)
        await self._janitor.tidy()
        return response

    async def PreviewDataset(
        self, request: dataset_service_pb2.PreviewDatasetRequest, _context: Context
    ) -> dataset_service_pb2.PreviewDatasetResponse:
        count = request.row_count or DEFAULT_PREVIEW_ROWS
        if not 0 < count <= MAX_PREVIEW_ROWS:
            rule = f"row_count must be 1 to {MAX_PREVIEW_ROWS}."
            raise Fault(FaultCode.INPUT_FIELD_INVALID, rule, field="row_count")
        version = await self._version_or_latest(request.name)
        texts = await self._intake.preview(version.object_key, row_count=count)
        return dataset_service_pb2.PreviewDatasetResponse(
            version=wire.version_to_proto(version, with_uri=for_service()),
            row_json=texts,
        )

    async def _upload(self, upload_id: str, *, project: str) -> Upload:
        check_id(upload_id, field="upload_id")
        async with self._store.unit() as unit:
            upload = await unit.upload(upload_id, project=project)
        if upload is None or upload.state is UploadState.EXPIRED:
            raise Fault(FaultCode.DATASET_UPLOAD_NOT_FOUND, upload=upload_id)
        return upload

    async def _committed(self, upload: Upload) -> dataset_service_pb2.CommitUploadResponse:
        """The answer for an upload that has ended."""
        if upload.refusal is not None:
            raise upload.refusal.as_fault()
        assert upload.version is not None, upload
        name = upload.announced.name
        async with self._store.unit() as unit:
            dataset = await _alive(unit, name)
            version = await living_version(
                unit,
                DatasetVersionName(
                    project=name.project, dataset=name.dataset, number=upload.version
                ),
            )
        with_uri = for_service()
        return dataset_service_pb2.CommitUploadResponse(
            dataset=wire.dataset_to_proto(dataset, with_uri=with_uri),
            version=wire.version_to_proto(version, with_uri=with_uri),
        )

    async def _version_or_latest(self, text: str) -> Version:
        if "/versions/" in text:
            version_name = DatasetVersionName.parse(text)
            current_caller().require_project(version_name)
            async with self._store.unit() as unit:
                return await living_version(unit, version_name)
        name = DatasetName.parse(text)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            latest = (await _alive(unit, name)).latest
        assert latest is not None, name
        return latest


async def _alive(unit: Unit, name: DatasetName) -> Dataset:
    dataset = await unit.dataset(name)
    similar_ids: tuple[str, ...] = ()
    if dataset is None:
        similar_ids = similar(name.dataset, await unit.dataset_ids(name.project))
    return alive(dataset, name, similar_ids=similar_ids)


async def living_version(unit: Unit, name: DatasetVersionName) -> Version:
    """A version that was not deleted, with the dataset's own answer when that was deleted."""
    found = await unit.version(name)
    if found is None:
        await _alive(unit, name.dataset_name)
        raise Fault(
            FaultCode.DATASET_NOT_FOUND,
            f"Dataset {name.dataset} has no version {name.number}.",
            dataset=str(name),
        )
    version, delete_time = found
    if delete_time is not None:
        raise Fault(
            FaultCode.DATASET_DELETED,
            f"Version {name.number} of dataset {name.dataset} was deleted.",
            dataset=str(name),
        )
    return version


def _upload_response(upload_id: str, link: Link) -> dataset_service_pb2.CreateUploadResponse:
    return dataset_service_pb2.CreateUploadResponse(
        upload_id=upload_id, url=link.url, expire_time=wire.timestamp(link.expire_time)
    )
