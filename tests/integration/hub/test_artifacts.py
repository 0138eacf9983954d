"""Hub entries by RPC on a real Postgres and store: registration, downloads, deletion, quota."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from chassis.identity import Role
from hub.domain.quota import Quota
from lexicon.faults import Fault, FaultCode
from tests.integration.hub.conftest import Hub
from tests.integration.hub.test_datasets import refusal
from tests.support.desk import calling
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)

pytestmark = pytest.mark.integration

LORA = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE


async def stored(hub: Hub, key: str, data: bytes) -> None:
    """Puts an object as a worker does, by a URL that the hub signed for the scheduler."""
    request = object_service_pb2.SignObjectsRequest(
        objects=[
            object_service_pb2.ObjectRequest(
                uri=f"object://{key}",
                method=object_service_pb2.OBJECT_METHOD_PUT,
                size_bytes=len(data),
            )
        ]
    )
    response = await hub.service.SignObjects(request)
    await hub.put(response.objects[0].url, data)


def registration(
    data: bytes,
    *,
    key: str,
    run: str = "run-1",
    kind: artifact_pb2.ArtifactKind = LORA,
    quantization: str = "",
) -> object_service_pb2.RegisterArtifactFileRequest:
    return object_service_pb2.RegisterArtifactFileRequest(
        request_id=f"register-{key}",
        run=f"projects/acme/runs/{run}",
        base_model="tunesmith/anvil-3m",
        file=artifact_pb2.ArtifactFile(
            kind=kind,
            quantization=quantization,
            file_name=f"{run}.zip",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            uri=f"object://{key}",
            entries=["README.md"],
        ),
    )


async def registered(
    hub: Hub, data: bytes, *, key: str, run: str = "run-1", quantization: str = ""
) -> artifact_pb2.Artifact:
    await stored(hub, key, data)
    kind = GGUF if quantization else LORA
    request = registration(data, key=key, run=run, kind=kind, quantization=quantization)
    response = await hub.service.RegisterArtifactFile(request)
    artifact: artifact_pb2.Artifact = response.artifact
    return artifact


def download(
    kind: artifact_pb2.ArtifactKind = LORA, run: str = "run-1", quantization: str = ""
) -> artifact_service_pb2.CreateDownloadRequest:
    return artifact_service_pb2.CreateDownloadRequest(
        name=f"projects/acme/artifacts/{run}", kind=kind, quantization=quantization
    )


async def names(hub: Hub) -> list[str]:
    request = artifact_service_pb2.ListArtifactsRequest(parent="projects/acme")
    response = await hub.artifacts.ListArtifacts(request)
    return [each.name for each in response.artifacts]


async def test_a_hub_entry_appears_with_the_first_file_and_takes_the_second(hub: Hub) -> None:
    """001-34: the entry is there right after the adapter is stored."""
    assert await names(hub) == []
    await registered(hub, b"adapter", key="runs/run-1/1/adapter.zip")
    assert await names(hub) == ["projects/acme/artifacts/run-1"]
    await registered(hub, b"gguf", key="runs/run-1/2/gguf.zip", quantization="Q4_K_M")
    request = artifact_service_pb2.GetArtifactRequest(name="projects/acme/artifacts/run-1")
    artifact = (await hub.artifacts.GetArtifact(request)).artifact
    assert [file.kind for file in artifact.files] == [LORA, GGUF]
    assert artifact.size_bytes == len(b"adapter") + len(b"gguf")
    assert artifact.run == "projects/acme/runs/run-1"
    assert all(file.uri == "" for file in artifact.files)


async def test_an_entry_with_the_adapter_alone_stands(hub: Hub) -> None:
    """As after an export that failed: the adapter can be downloaded."""
    await registered(hub, b"adapter", key="runs/run-1/1/adapter.zip")
    response = await hub.artifacts.CreateDownload(download())
    assert await hub.get(response.url) == b"adapter"
    fault = await refusal(hub.artifacts.CreateDownload(download(GGUF)))
    assert fault.code is FaultCode.ARTIFACT_NOT_FOUND
    assert "it has lora_adapter" in fault.message


async def test_every_click_makes_a_fresh_url_that_ends_in_time(hub: Hub) -> None:
    """001-38, A15: signed, 15 minutes, the second call differs, an expired one is refused."""
    await registered(hub, b"adapter", key="runs/run-1/1/adapter.zip")
    first = await hub.artifacts.CreateDownload(download())
    second = await hub.artifacts.CreateDownload(download())
    assert first.url != second.url
    assert await hub.get(first.url) == await hub.get(second.url) == b"adapter"
    life = first.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(minutes=14) < life <= timedelta(minutes=15)
    parts = urlsplit(first.url)
    later = datetime.now(UTC) + timedelta(minutes=15)
    with pytest.raises(Fault) as caught:
        hub.signer.verify("GET", parts.path, parts.query, later)
    assert caught.value.code is FaultCode.STORAGE_URL_EXPIRED


async def test_a_url_is_worthless_after_its_artifact_was_deleted(hub: Hub) -> None:
    """Attack 14: replay after artifact deletion."""
    await registered(hub, b"adapter", key="runs/run-1/1/adapter.zip")
    for step in range(120):
        await stored(hub, f"runs/run-1/1/checkpoints/step-{step}", b"loose")
    response = await hub.artifacts.CreateDownload(download())
    request = artifact_service_pb2.DeleteArtifactRequest(
        request_id="d1", name="projects/acme/artifacts/run-1"
    )
    await hub.artifacts.DeleteArtifact(request)
    await hub.artifacts.DeleteArtifact(request)
    fault = await refusal(hub.get(response.url))
    assert fault.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
    assert hub.object_files() == []
    assert await names(hub) == []
    used = await hub.pool.fetchval("SELECT artifact_bytes FROM usage WHERE project = 'acme'")
    assert used == 0
    gone = await refusal(hub.artifacts.CreateDownload(download()))
    assert gone.code is FaultCode.ARTIFACT_NOT_FOUND


async def test_only_what_is_stored_as_said_is_registered(hub: Hub) -> None:
    await stored(hub, "runs/run-1/1/a.zip", b"adapter")
    other = registration(b"adaptor", key="runs/run-1/1/a.zip")
    fault = await refusal(hub.service.RegisterArtifactFile(other))
    assert fault.code is FaultCode.STORAGE_CHECKSUM_MISMATCH
    missing = registration(b"adapter", key="runs/run-1/1/none.zip")
    fault = await refusal(hub.service.RegisterArtifactFile(missing))
    assert fault.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
    assert await names(hub) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"file_name": "a/b.zip"}, FaultCode.INPUT_FIELD_INVALID),
        ({"file_name": ""}, FaultCode.INPUT_FIELD_INVALID),
        ({"sha256": "A" * 64}, FaultCode.INPUT_FIELD_INVALID),
        ({"size_bytes": 0}, FaultCode.INPUT_FIELD_INVALID),
        ({"quantization": "Q4_K_M"}, FaultCode.INPUT_FIELD_INVALID),
        ({"kind": artifact_pb2.ARTIFACT_KIND_UNSPECIFIED}, FaultCode.INPUT_FIELD_MISSING),
        ({"uri": "object://../x"}, FaultCode.STORAGE_KEY_INVALID),
        ({"uri": "file:///etc/passwd"}, FaultCode.STORAGE_KEY_INVALID),
    ],
)
async def test_a_malformed_description_is_refused(
    hub: Hub, change: dict[str, object], code: FaultCode
) -> None:
    request = registration(b"adapter", key="runs/run-1/1/a.zip")
    for field, value in change.items():
        setattr(request.file, field, value)
    assert (await refusal(hub.service.RegisterArtifactFile(request))).code is code


async def test_registering_the_same_file_again_changes_nothing(hub: Hub) -> None:
    await registered(hub, b"adapter", key="runs/run-1/1/a.zip")
    request = registration(b"adapter", key="runs/run-1/1/a.zip")
    responses = await asyncio.gather(*(hub.service.RegisterArtifactFile(request) for _ in range(8)))
    assert {each.artifact.size_bytes for each in responses} == {len(b"adapter")}


async def test_a_newer_export_takes_the_place_of_the_older_one(hub: Hub) -> None:
    await registered(hub, b"old gguf", key="runs/run-1/1/g.zip", quantization="Q4_K_M")
    artifact = await registered(hub, b"gguf", key="runs/run-1/2/g.zip", quantization="Q4_K_M")
    assert [file.size_bytes for file in artifact.files] == [4]
    response = await hub.artifacts.CreateDownload(download(GGUF))
    assert await hub.get(response.url) == b"gguf"
    assert len(hub.object_files()) == 1


async def test_a_download_without_a_quantisation_is_the_newest(hub: Hub) -> None:
    await registered(hub, b"q8", key="runs/run-1/1/q8.zip", quantization="Q8_0")
    await registered(hub, b"q4", key="runs/run-1/1/q4.zip", quantization="Q4_K_M")
    newest = await hub.artifacts.CreateDownload(download(GGUF))
    chosen = await hub.artifacts.CreateDownload(download(GGUF, quantization="Q8_0"))
    assert (newest.file.quantization, chosen.file.quantization) == ("Q4_K_M", "Q8_0")
    assert await hub.get(chosen.url) == b"q8"


async def test_parallel_runs_never_exceed_the_artifact_quota_together(hub: Hub) -> None:
    """Attack 15: the storage quota is never exceeded by parallel runs."""
    hub.quotas["acme"] = Quota(dataset_bytes=0, artifact_bytes=50)
    results = await asyncio.gather(
        *(
            registered(hub, b"%010d" % number, key=f"runs/r{number}/1/a.zip", run=f"r{number}")
            for number in range(12)
        ),
        return_exceptions=True,
    )
    refused = [each for each in results if isinstance(each, Fault)]
    assert {each.code for each in refused} == {FaultCode.QUOTA_ARTIFACTS_EXCEEDED}
    assert len(await names(hub)) == 5
    usage = await hub.artifacts.GetStorageUsage(
        artifact_service_pb2.GetStorageUsageRequest(parent="projects/acme")
    )
    assert (usage.usage.artifact_bytes, usage.usage.artifact_quota_bytes) == (50, 50)


async def test_users_cannot_sign_objects_or_register_files(hub: Hub) -> None:
    stub = object_service_pb2_grpc.ObjectServiceStub(hub.channel)
    fault = await refusal(stub.SignObjects(object_service_pb2.SignObjectsRequest()))
    assert fault.code is FaultCode.ACCESS_DENIED
    fault = await refusal(stub.RegisterArtifactFile(registration(b"x", key="a/b")))
    assert fault.code is FaultCode.ACCESS_DENIED


async def test_another_projects_artifacts_are_out_of_reach(hub: Hub) -> None:
    """Attack 14: use across tenants."""
    await registered(hub, b"adapter", key="runs/run-1/1/a.zip")
    async with calling(hub.address, Role.PROJECT, project="other") as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        name = "projects/acme/artifacts/run-1"
        calls = [
            stub.GetArtifact(artifact_service_pb2.GetArtifactRequest(name=name)),
            stub.CreateDownload(download()),
            stub.DeleteArtifact(
                artifact_service_pb2.DeleteArtifactRequest(request_id="x", name=name)
            ),
            stub.ListArtifacts(artifact_service_pb2.ListArtifactsRequest(parent="projects/acme")),
        ]
        for call in calls:
            assert (await refusal(call)).code is FaultCode.ACCESS_PROJECT_FORBIDDEN


async def test_the_entry_of_one_run_can_be_asked_for(hub: Hub) -> None:
    await registered(hub, b"one", key="runs/r1/1/a.zip", run="r1")
    await registered(hub, b"two", key="runs/r2/1/a.zip", run="r2")
    request = artifact_service_pb2.ListArtifactsRequest(
        parent="projects/acme", run="projects/acme/runs/r2"
    )
    response = await hub.artifacts.ListArtifacts(request)
    assert [each.name for each in response.artifacts] == ["projects/acme/artifacts/r2"]


async def test_loose_files_are_held_against_the_store(hub: Hub) -> None:
    """003-04: what a later export reads is there, whole, and in the folder of its own run."""
    data = b"weights"
    sha256 = hashlib.sha256(data).hexdigest()
    await stored(hub, "runs/run-1/1/adapter_model.safetensors", data)
    good = object_service_pb2.SaidObject(
        uri="object://runs/run-1/1/adapter_model.safetensors", size_bytes=len(data), sha256=sha256
    )

    async def verified(**changes: Any) -> None:
        said = object_service_pb2.SaidObject()
        said.CopyFrom(good)
        for name, value in changes.items():
            setattr(said, name, value)
        await hub.service.VerifyObjects(
            object_service_pb2.VerifyObjectsRequest(
                run="projects/acme/runs/run-1", objects=[good, said]
            )
        )

    await verified()
    for changes, code in (
        ({"uri": "object://runs/run-1/1/gone"}, FaultCode.STORAGE_OBJECT_NOT_FOUND),
        ({"size_bytes": 8}, FaultCode.STORAGE_CHECKSUM_MISMATCH),
        ({"sha256": "0" * 64}, FaultCode.STORAGE_CHECKSUM_MISMATCH),
        ({"uri": "object://runs/run-2/1/x"}, FaultCode.INPUT_FIELD_INVALID),
        ({"uri": "object://datasets/x"}, FaultCode.INPUT_FIELD_INVALID),
    ):
        with pytest.raises(Fault) as caught:
            await verified(**changes)
        assert caught.value.code is code, changes
