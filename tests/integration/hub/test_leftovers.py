"""What runs leave behind, and the bytes of deleted datasets, on a real Postgres and store."""

import asyncio
import uuid
from collections.abc import Sequence

import pytest

from hub.domain.quota import Quota
from lexicon.faults import Fault, FaultCode
from tests.integration.hub.conftest import Hub
from tests.integration.hub.test_artifacts import registered, registration, stored
from tests.integration.hub.test_datasets import get_request, refusal, rows
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.dataset.v1 import dataset_service_pb2

pytestmark = pytest.mark.integration

RUN = "projects/acme/runs/run-1"
VERSION = "projects/acme/datasets/greetings/versions/1"
CHECKPOINT = "runs/run-1/1/aa/checkpoints/1/state"
LOOSE = "runs/run-1/2/bb/adapter/adapter_config.json"
OLD_LOOSE = "runs/run-1/1/cc/adapter/adapter_config.json"


async def swept(
    hub: Hub,
    *,
    adapter: Sequence[str] = (),
    only: Sequence[str] = (),
    request_id: str = "",
    run: str = RUN,
) -> object_service_pb2.DeleteRunLeftoversResponse:
    response: object_service_pb2.DeleteRunLeftoversResponse = await hub.service.DeleteRunLeftovers(
        object_service_pb2.DeleteRunLeftoversRequest(
            request_id=request_id or uuid.uuid4().hex,
            run=run,
            adapter_uris=[f"object://{key}" for key in adapter],
            only_uris=[f"object://{key}" for key in only],
        )
    )
    return response


async def held(hub: Hub, run: str = RUN, *versions: str) -> None:
    await hub.service.HoldDatasetVersions(
        object_service_pb2.HoldDatasetVersionsRequest(
            request_id=uuid.uuid4().hex, run=run, versions=versions or (VERSION,)
        )
    )


async def deleted(hub: Hub, dataset_id: str = "greetings") -> None:
    await hub.datasets.DeleteDataset(
        dataset_service_pb2.DeleteDatasetRequest(
            request_id=uuid.uuid4().hex, name=f"projects/acme/datasets/{dataset_id}"
        )
    )


async def used_bytes(hub: Hub) -> int:
    request = artifact_service_pb2.GetStorageUsageRequest(parent="projects/acme")
    usage = (await hub.artifacts.GetStorageUsage(request)).usage
    return int(usage.dataset_bytes)


async def test_nothing_stays_of_a_run_without_a_hub_entry(hub: Hub) -> None:
    """001-33, 001-41: a cancelled run leaves no entry; neither does it leave bytes."""
    for key in (CHECKPOINT, LOOSE, "runs/run-1/2/dd/adapter.zip"):
        await stored(hub, key, key.encode())
    await stored(hub, "runs/run-10/1/aa/adapter.zip", b"another run's")
    assert (await swept(hub, adapter=[LOOSE])).removed_count == 3
    assert await hub.objects.keys("runs/run-1") == []
    assert await hub.objects.keys("runs/run-10") == ["runs/run-10/1/aa/adapter.zip"]
    assert len(hub.object_files()) == 1


async def test_an_entry_keeps_its_files_and_the_loose_files_of_its_adapter(hub: Hub) -> None:
    """A5, 001-39: what a later export of the stored adapter needs stays; all else goes."""
    await registered(hub, b"adapter", key="runs/run-1/2/dd/adapter.zip")
    await registered(hub, b"gguf", key="runs/run-1/3/ee/gguf.zip", quantization="Q4_K_M")
    for key in (CHECKPOINT, LOOSE, OLD_LOOSE):
        await stored(hub, key, key.encode())
    assert (await swept(hub, adapter=[LOOSE])).removed_count == 2
    assert sorted(await hub.objects.keys("runs/run-1")) == [
        LOOSE,
        "runs/run-1/2/dd/adapter.zip",
        "runs/run-1/3/ee/gguf.zip",
    ]
    assert (await swept(hub, adapter=[LOOSE])).removed_count == 0


async def test_a_repeated_request_gets_its_first_answer_and_sweeps_once(hub: Hub) -> None:
    await stored(hub, CHECKPOINT, b"one")
    first = await swept(hub, request_id="sweep 1")
    await stored(hub, "runs/run-1/1/ab/state", b"two")
    assert await swept(hub, request_id="sweep 1") == first
    assert await hub.objects.keys("runs/run-1") == ["runs/run-1/1/ab/state"]
    fault = await refusal(swept(hub, request_id="sweep 1", adapter=[LOOSE]))
    assert fault.code is FaultCode.INPUT_REQUEST_ID_REUSED


async def test_what_a_straggler_puts_afterwards_goes_with_the_next_sweep(hub: Hub) -> None:
    """Its URL lives on after the run's end: a swept key is refused, a new one is swept later."""
    await stored(hub, CHECKPOINT, b"state")
    first = await swept(hub)
    assert first.again_after.ToTimedelta().total_seconds() == (15 + 60) * 60
    fault = await refusal(stored(hub, CHECKPOINT, b"state"))
    assert fault.code is FaultCode.STORAGE_OBJECT_EXISTS
    await stored(hub, "runs/run-1/1/ab/checkpoints/2/state", b"late")
    assert (await swept(hub)).removed_count == 1
    assert hub.object_files() == []


async def test_some_objects_of_a_run_under_way_can_go_alone(hub: Hub) -> None:
    await stored(hub, CHECKPOINT, b"old")
    await stored(hub, "runs/run-1/1/ab/checkpoints/2/state", b"new")
    await registered(hub, b"adapter", key="runs/run-1/2/dd/adapter.zip")
    await hub.push("greetings", rows())
    await held(hub)
    only = [CHECKPOINT, "runs/run-1/2/dd/adapter.zip"]
    assert (await swept(hub, only=only)).removed_count == 1
    assert sorted(await hub.objects.keys("runs/run-1")) == [
        "runs/run-1/1/ab/checkpoints/2/state",
        "runs/run-1/2/dd/adapter.zip",
    ]
    await deleted(hub)
    assert await used_bytes(hub) == len(rows())


@pytest.mark.parametrize(
    "key", ["runs/run-2/1/aa/x", "datasets/upload-1", "runs/run-10/x", "models/anvil/config"]
)
async def test_objects_of_others_are_never_named(hub: Hub, key: str) -> None:
    """Attack 14: use across runs."""
    for call in (swept(hub, only=[key]), swept(hub, adapter=[key])):
        assert (await refusal(call)).code is FaultCode.INPUT_FIELD_INVALID


async def test_a_swept_file_cannot_be_registered(hub: Hub) -> None:
    """001-33: a registration that comes after the end of its run makes no entry."""
    key = "runs/run-1/1/aa/adapter.zip"
    await stored(hub, key, b"adapter")
    request = registration(b"adapter", key=key)
    results = await asyncio.gather(
        hub.service.RegisterArtifactFile(request), swept(hub), return_exceptions=True
    )
    entry_made = not isinstance(results[0], BaseException)
    assert entry_made == (await hub.objects.head(key) is not None)
    if not entry_made:
        assert isinstance(results[0], Fault)
        assert results[0].code is FaultCode.STORAGE_OBJECT_NOT_FOUND


async def test_users_cannot_sweep_or_hold(hub: Hub) -> None:
    stub = object_service_pb2_grpc.ObjectServiceStub(hub.channel)
    request = object_service_pb2.DeleteRunLeftoversRequest(request_id="x", run=RUN)
    assert (await refusal(stub.DeleteRunLeftovers(request))).code is FaultCode.ACCESS_DENIED
    hold = object_service_pb2.HoldDatasetVersionsRequest(
        request_id="x", run=RUN, versions=[VERSION]
    )
    assert (await refusal(stub.HoldDatasetVersions(hold))).code is FaultCode.ACCESS_DENIED


async def test_the_bytes_of_a_deleted_dataset_stay_while_runs_hold_them(hub: Hub) -> None:
    """000-33: gone for users at once; runs under way still read it, then the quota is free."""
    hub.quotas["acme"] = Quota(dataset_bytes=len(rows()), artifact_bytes=0)
    await hub.push("greetings", rows())
    await held(hub)
    await held(hub, "projects/acme/runs/run-2")
    await deleted(hub)
    fault = await refusal(hub.datasets.GetDataset(get_request("greetings")))
    assert fault.code is FaultCode.DATASET_DELETED
    late = await refusal(held(hub, "projects/acme/runs/run-3"))
    assert late.code is FaultCode.DATASET_DELETED
    await held(hub)
    for run in (RUN, "projects/acme/runs/run-2"):
        assert (len(hub.object_files()), await used_bytes(hub)) == (1, len(rows()))
        assert (await refusal(hub.push("two", rows()))).code is FaultCode.QUOTA_DATASETS_EXCEEDED
        await swept(hub, run=run)
    assert (hub.object_files(), await used_bytes(hub)) == ([], 0)
    assert (await hub.push("two", rows())).version.version == 1


async def test_a_hold_keeps_its_version_alone_and_a_living_dataset_everything(hub: Hub) -> None:
    await hub.push("greetings", rows(3))
    await hub.push("greetings", rows(4))
    await held(hub)
    await swept(hub)
    assert len(hub.object_files()) == 2
    await held(hub)
    await deleted(hub)
    assert await used_bytes(hub) == len(rows(3))
    assert (await hub.push("greetings", rows(5))).version.version == 3
    await swept(hub)
    assert await used_bytes(hub) == len(rows(5))


async def test_a_deletion_and_a_hold_at_once_never_leave_a_hold_without_bytes(hub: Hub) -> None:
    for number in range(6):
        name = f"d-{number}"
        await hub.push(name, rows(number + 1))
        version = f"projects/acme/datasets/{name}/versions/1"
        hold = held(hub, f"projects/acme/runs/run-{number}", version)
        outcomes = await asyncio.gather(hold, deleted(hub, name), return_exceptions=True)
        assert not isinstance(outcomes[1], BaseException)
        is_held = not isinstance(outcomes[0], BaseException)
        kept = len(rows(number + 1)) if is_held else 0
        assert await used_bytes(hub) == kept
        await swept(hub, run=f"projects/acme/runs/run-{number}")
        assert await used_bytes(hub) == 0


async def test_a_run_holds_versions_of_its_own_project_only(hub: Hub) -> None:
    """Attack 14: use across tenants."""
    theirs = await refusal(held(hub, "projects/other/runs/run-1"))
    assert theirs.code is FaultCode.INPUT_FIELD_INVALID
    assert (await refusal(held(hub))).code is FaultCode.DATASET_NOT_FOUND


async def test_an_export_adds_to_its_entry_and_the_runs_sweep_leaves_it_alone(hub: Hub) -> None:
    """A5, 001-05: the bundle lies apart from the run's folder; what was not registered goes."""
    await registered(hub, b"adapter", key="runs/run-1/2/dd/adapter.zip")
    await registered(hub, b"gguf", key="exports/export-1/2/ee/gguf.zip", quantization="Q8_0")
    await stored(hub, "exports/export-1/1/ff/gguf.zip", b"of a lost exporter")
    await stored(hub, "exports/export-10/1/ff/gguf.zip", b"another export's")
    await swept(hub)
    request = object_service_pb2.DeleteExportLeftoversRequest(
        request_id="sweep export-1 1", export="projects/acme/exports/export-1"
    )
    first = await hub.service.DeleteExportLeftovers(request)
    assert first.removed_count == 1
    assert first.again_after.ToTimedelta().total_seconds() == (15 + 60) * 60
    assert await hub.service.DeleteExportLeftovers(request) == first
    assert await hub.objects.keys("exports/export-1") == ["exports/export-1/2/ee/gguf.zip"]
    assert await hub.objects.keys("exports/export-10") == ["exports/export-10/1/ff/gguf.zip"]


async def test_a_deleted_entry_is_not_made_again_by_an_export(hub: Hub) -> None:
    """The entry goes with all its files, wherever they lie; a late bundle finds nothing."""
    await registered(hub, b"adapter", key="runs/run-1/2/dd/adapter.zip")
    await registered(hub, b"gguf", key="exports/export-1/1/ee/gguf.zip", quantization="Q8_0")
    await hub.artifacts.DeleteArtifact(
        artifact_service_pb2.DeleteArtifactRequest(
            request_id="d", name="projects/acme/artifacts/run-1"
        )
    )
    assert hub.object_files() == []
    await stored(hub, "exports/export-2/1/ee/gguf.zip", b"late")
    late = registration(
        b"late",
        key="exports/export-2/1/ee/gguf.zip",
        kind=artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE,
        quantization="Q2_K",
    )
    late.existing_only = True
    fault = await refusal(hub.service.RegisterArtifactFile(late))
    assert fault.code is FaultCode.ARTIFACT_NOT_FOUND
    listed = artifact_service_pb2.ListArtifactsRequest(parent="projects/acme")
    assert not (await hub.artifacts.ListArtifacts(listed)).artifacts
