# Generated from tunesmith/aio/datasets.py by `make client`; do not edit.
"""Datasets of the project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.api.dataset.v1 import dataset_pb2, dataset_service_pb2
from tunesmith.client.connection import Connection
from tunesmith.errors import InputError
from tunesmith.names import dataset_id_of, full_name, new_request_id
from tunesmith.transfer import OnBytes, size_and_sha256
from tunesmith.transport import SUBMIT_SECONDS


class Datasets:
    """Datasets of the project."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._project = connection.credentials.project

    def push(
        self,
        path: Path | str,
        *,
        dataset_id: str = "",
        display_name: str = "",
        request_id: str = "",
        on_bytes: OnBytes | None = None,
    ) -> dataset_pb2.DatasetVersion:
        """Send a file and make it the newest version of a dataset.

        Args:
            dataset_id: default the name of the file.
            on_bytes: called with the number of bytes as they are sent.
        Raises:
            TunesmithError: the file is refused, and no version is created.
        """
        path, request_id = Path(path), request_id or new_request_id()
        size_bytes, sha256 = size_and_sha256(path)
        if size_bytes == 0:
            raise InputError(
                "DATASET_EMPTY", f"The file {path.name} is empty.", metadata={"path": str(path)}
            )
        create = dataset_service_pb2.CreateUploadRequest(
            request_id=f"{request_id}-create",
            parent=f"projects/{self._project}",
            dataset_id=dataset_id or dataset_id_of(path),
            size_bytes=size_bytes,
            sha256=sha256,
            file_name=path.name,
            display_name=display_name,
        )
        upload = self._connection.call(create, dataset_service_pb2.CreateUploadResponse)
        self._connection.upload(upload.url, path, on_bytes=on_bytes)
        commit = dataset_service_pb2.CommitUploadRequest(
            request_id=f"{request_id}-commit",
            parent=f"projects/{self._project}",
            upload_id=upload.upload_id,
        )
        committed = self._connection.call(
            commit, dataset_service_pb2.CommitUploadResponse, timeout_seconds=SUBMIT_SECONDS
        )
        return committed.version

    def list(self, *, limit: int | None = None) -> Sequence[dataset_pb2.Dataset]:
        """Datasets, newest first."""
        return self._connection.pages(
            dataset_service_pb2.ListDatasetsRequest(parent=f"projects/{self._project}"),
            dataset_service_pb2.ListDatasetsResponse,
            lambda page: page.datasets,
            limit=limit,
        )

    def get(self, dataset: str) -> dataset_pb2.Dataset:
        """One dataset by id or name."""
        request = dataset_service_pb2.GetDatasetRequest(name=self._name(dataset))
        answer = self._connection.call(request, dataset_service_pb2.GetDatasetResponse)
        return answer.dataset

    def inspect(
        self, dataset: str, *, row_count: int = 5
    ) -> dataset_service_pb2.PreviewDatasetResponse:
        """A version with its statistics and first rows; `habit@2` names an older one."""
        request = dataset_service_pb2.PreviewDatasetRequest(
            name=self._name(dataset), row_count=row_count
        )
        return self._connection.call(request, dataset_service_pb2.PreviewDatasetResponse)

    def delete(self, dataset: str, *, request_id: str = "") -> None:
        """Delete a dataset; runs that used it keep their record."""
        request = dataset_service_pb2.DeleteDatasetRequest(
            request_id=request_id or new_request_id(), name=self._name(dataset)
        )
        self._connection.call(request, dataset_service_pb2.DeleteDatasetResponse)

    def _name(self, dataset: str) -> str:
        return full_name(self._project, "datasets", dataset)
