"""What can be done with datasets."""

from __future__ import annotations

from pathlib import Path

from tunesmith.api.dataset.v1 import dataset_pb2, dataset_service_pb2
from tunesmith.errors import InputError
from tunesmith.names import dataset_id_of, full_name
from tunesmith.operations.steps import PAGE_SIZE, call, pages
from tunesmith.transfer import OnBytes, Upload, size_and_sha256
from tunesmith.transport import SUBMIT_SECONDS, Operation

DATASET_SERVICE = "/tunesmith.api.dataset.v1.DatasetService"


def push_dataset(
    project: str,
    path: Path,
    *,
    dataset_id: str,
    display_name: str,
    request_id: str,
    on_bytes: OnBytes | None,
) -> Operation[dataset_pb2.DatasetVersion]:
    """Send a file and make it the newest version of a dataset.

    Raises:
        InputError: DATASET_FILE_INVALID, DATASET_EMPTY.
    """
    size_bytes, sha256 = size_and_sha256(path)
    if size_bytes == 0:
        raise InputError(
            "DATASET_EMPTY", f"The file {path.name} is empty.", metadata={"path": str(path)}
        )
    create = dataset_service_pb2.CreateUploadRequest(
        request_id=f"{request_id}-create",
        parent=f"projects/{project}",
        dataset_id=dataset_id or dataset_id_of(path),
        size_bytes=size_bytes,
        sha256=sha256,
        file_name=path.name,
        display_name=display_name,
    )
    upload = yield from call(
        DATASET_SERVICE, "CreateUpload", create, dataset_service_pb2.CreateUploadResponse
    )
    yield Upload(url=upload.url, path=path, on_bytes=on_bytes)
    commit = dataset_service_pb2.CommitUploadRequest(
        request_id=f"{request_id}-commit",
        parent=f"projects/{project}",
        upload_id=upload.upload_id,
    )
    response = dataset_service_pb2.CommitUploadResponse
    committed = yield from call(DATASET_SERVICE, "CommitUpload", commit, response, SUBMIT_SECONDS)
    return committed.version


def list_datasets(project: str, *, limit: int | None) -> Operation[list[dataset_pb2.Dataset]]:
    """Datasets, newest first."""
    request = dataset_service_pb2.ListDatasetsRequest(
        parent=f"projects/{project}", page_size=PAGE_SIZE
    )
    return (
        yield from pages(
            DATASET_SERVICE,
            "ListDatasets",
            request,
            dataset_service_pb2.ListDatasetsResponse,
            lambda page: page.datasets,
            limit=limit,
        )
    )


def get_dataset(project: str, dataset: str) -> Operation[dataset_pb2.Dataset]:
    """One dataset."""
    request = dataset_service_pb2.GetDatasetRequest(name=full_name(project, "datasets", dataset))
    response = dataset_service_pb2.GetDatasetResponse
    return (yield from call(DATASET_SERVICE, "GetDataset", request, response)).dataset


def inspect_dataset(
    project: str, dataset: str, *, row_count: int
) -> Operation[dataset_service_pb2.PreviewDatasetResponse]:
    """A version with its statistics and its first rows as JSON texts."""
    request = dataset_service_pb2.PreviewDatasetRequest(
        name=full_name(project, "datasets", dataset), row_count=row_count
    )
    response = dataset_service_pb2.PreviewDatasetResponse
    return (yield from call(DATASET_SERVICE, "PreviewDataset", request, response))


def delete_dataset(project: str, dataset: str, *, request_id: str) -> Operation[None]:
    """Delete a dataset."""
    request = dataset_service_pb2.DeleteDatasetRequest(
        request_id=request_id, name=full_name(project, "datasets", dataset)
    )
    response = dataset_service_pb2.DeleteDatasetResponse
    yield from call(DATASET_SERVICE, "DeleteDataset", request, response)
