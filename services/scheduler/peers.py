"""What the scheduler asks of other services, each call with its deadline."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import grpc.aio

from scheduler.wire import timestamp
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2, validation_service_pb2_grpc
from tunesmith.api.work.v1 import work_pb2

# The checks of a submission may ask the model hub.
VALIDATE_SECONDS: Final = 60.0
CALL_SECONDS: Final = 15.0

# Registering an artifact keeps a run's row locked, so it may not take long.
REGISTER_SECONDS: Final = 10.0

# A sweep reads through a run's folder in the object store.
SWEEP_SECONDS: Final = 60.0

# Objects that the hub signs in one call.
MAX_OBJECTS: Final = 1000


class Peers:
    """The validator, billing and the hub."""

    def __init__(
        self,
        *,
        validator: grpc.aio.Channel,
        billing: grpc.aio.Channel,
        hub: grpc.aio.Channel,
    ) -> None:
        # grpc ships no types.
        self._validator: Any = validation_service_pb2_grpc.ValidationServiceStub(validator)
        self._billing: Any = billing_service_pb2_grpc.BillingServiceStub(billing)
        self._objects: Any = object_service_pb2_grpc.ObjectServiceStub(hub)
        self._artifacts: Any = artifact_service_pb2_grpc.ArtifactServiceStub(hub)

    async def validate(
        self, parent: str, spec: spec_pb2.RunSpec, *, hub_token: str
    ) -> validation_service_pb2.ValidateRunResponse:
        """What a spec means, needs and costs."""
        request = validation_service_pb2.ValidateRunRequest(
            parent=parent, spec=spec, hub_token=hub_token
        )
        response: validation_service_pb2.ValidateRunResponse = await self._validator.ValidateRun(
            request, timeout=VALIDATE_SECONDS
        )
        return response

    async def hold(self, run: str, quote: billing_pb2.Quote, *, event_time: datetime) -> None:
        """Reserves the highest price of a run; once a run, however often it is asked.

        Raises:
            Fault: BILLING_FUNDS_INSUFFICIENT.
        """
        request = billing_service_pb2.HoldFundsRequest(
            request_id=f"hold {run}"[:128],
            run=run,
            quote=quote,
            event_time=timestamp(event_time),
        )
        await self._billing.HoldFunds(request, timeout=CALL_SECONDS)

    async def release(self, run: str, *, reason: str) -> None:
        """Gives the hold of a run back that did not come to be."""
        request = billing_service_pb2.ReleaseHoldRequest(
            request_id=f"release {run}"[:128], run=run, reason=reason
        )
        await self._billing.ReleaseHold(request, timeout=CALL_SECONDS)

    async def sign_reads(self, uris: Sequence[str]) -> dict[str, str]:
        """URLs for HTTP GET by URI."""
        return await self._sign(
            [
                object_service_pb2.ObjectRequest(
                    uri=uri, method=object_service_pb2.OBJECT_METHOD_GET
                )
                for uri in dict.fromkeys(uris)
            ]
        )

    async def sign_writes(self, sizes_bytes: Mapping[str, int]) -> dict[str, str]:
        """URLs for one HTTP PUT each, by URI; a size of 0 leaves it open."""
        return await self._sign(
            [
                object_service_pb2.ObjectRequest(
                    uri=uri,
                    method=object_service_pb2.OBJECT_METHOD_PUT,
                    size_bytes=size_bytes,
                )
                for uri, size_bytes in sizes_bytes.items()
            ]
        )

    async def verify_objects(self, run: str, files: Sequence[work_pb2.OutputFile]) -> None:
        """Has the hub look whether files of a run are stored as a worker says.

        Raises:
            Fault: STORAGE_OBJECT_NOT_FOUND, STORAGE_CHECKSUM_MISMATCH.
        """
        request = object_service_pb2.VerifyObjectsRequest(
            run=run,
            objects=[
                object_service_pb2.SaidObject(
                    uri=file.uri, size_bytes=file.size_bytes, sha256=file.sha256
                )
                for file in files
            ],
        )
        await self._objects.VerifyObjects(request, timeout=REGISTER_SECONDS)

    async def register_artifact(
        self,
        run: str,
        file: artifact_pb2.ArtifactFile,
        *,
        base_model: str,
        existing_only: bool = False,
    ) -> str:
        """Makes a stored file an artifact after the hub has checked its size and sha256.

        Args:
            existing_only: whether a deleted hub entry stays deleted.
        Returns:
            Name of the hub entry.
        Raises:
            Fault: QUOTA_ARTIFACTS_EXCEEDED, STORAGE_CHECKSUM_MISMATCH, ARTIFACT_NOT_FOUND.
        """
        request = object_service_pb2.RegisterArtifactFileRequest(
            request_id=file.uri.removeprefix("object://")[-128:],
            run=run,
            base_model=base_model,
            file=file,
            existing_only=existing_only,
        )
        response = await self._objects.RegisterArtifactFile(request, timeout=REGISTER_SECONDS)
        name: str = response.artifact.name
        return name

    async def artifact(self, name: str) -> artifact_pb2.Artifact:
        """A hub entry as it is now.

        Raises:
            Fault: ARTIFACT_NOT_FOUND.
        """
        request = artifact_service_pb2.GetArtifactRequest(name=name)
        response = await self._artifacts.GetArtifact(request, timeout=CALL_SECONDS)
        found: artifact_pb2.Artifact = response.artifact
        return found

    async def usage(self, project: str) -> artifact_pb2.StorageUsage:
        """What a project keeps of its quotas."""
        request = artifact_service_pb2.GetStorageUsageRequest(parent=f"projects/{project}")
        response = await self._artifacts.GetStorageUsage(request, timeout=CALL_SECONDS)
        usage: artifact_pb2.StorageUsage = response.usage
        return usage

    async def hold_versions(self, run: str, versions: Sequence[str]) -> None:
        """Keeps the bytes of dataset versions until the leftovers of the run are swept.

        Raises:
            Fault: DATASET_DELETED, DATASET_NOT_FOUND.
        """
        # A later try of the same submission may mean newer versions.
        digest = hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]
        request = object_service_pb2.HoldDatasetVersionsRequest(
            request_id=f"hold {_id_of(run)} {digest}", run=run, versions=versions
        )
        await self._objects.HoldDatasetVersions(request, timeout=CALL_SECONDS)

    async def sweep_ended(
        self, run: str, *, number: int, adapter_uris: Sequence[str]
    ) -> tuple[int, timedelta]:
        """Removes what nobody needs of a run that has ended, and lets go of its datasets.

        Args:
            number: of the sweep; each of them happens once.
        Returns:
            How many objects were removed, and how long uploads may still come.
        """
        request = object_service_pb2.DeleteRunLeftoversRequest(
            request_id=f"sweep {_id_of(run)} {number}", run=run, adapter_uris=adapter_uris
        )
        response = await self._objects.DeleteRunLeftovers(request, timeout=SWEEP_SECONDS)
        return response.removed_count, response.again_after.ToTimedelta()

    async def sweep_export(self, export: str, *, number: int) -> tuple[int, timedelta]:
        """Removes what an export that has ended stored and nobody needs; answers as for a run."""
        request = object_service_pb2.DeleteExportLeftoversRequest(
            request_id=f"sweep {_id_of(export)} {number}", export=export
        )
        response = await self._objects.DeleteExportLeftovers(request, timeout=SWEEP_SECONDS)
        return response.removed_count, response.again_after.ToTimedelta()

    async def remove_objects(self, run: str, uris: Sequence[str], *, key: str) -> None:
        """Removes some objects of a run under way; `key` makes it repeatable."""
        request = object_service_pb2.DeleteRunLeftoversRequest(
            request_id=f"remove {_id_of(run)} {key}", run=run, only_uris=uris
        )
        await self._objects.DeleteRunLeftovers(request, timeout=SWEEP_SECONDS)

    async def _sign(self, objects: list[object_service_pb2.ObjectRequest]) -> dict[str, str]:
        urls: dict[str, str] = {}
        for start in range(0, len(objects), MAX_OBJECTS):
            request = object_service_pb2.SignObjectsRequest(
                objects=objects[start : start + MAX_OBJECTS]
            )
            response = await self._objects.SignObjects(request, timeout=CALL_SECONDS)
            urls.update({signed.uri: signed.url for signed in response.objects})
        return urls


def _id_of(run: str) -> str:
    return run.rpartition("/")[2]
