"""Datasets by RPC on a real Postgres and store: pushing, refusing, versions, deletion, quota."""

import asyncio
import errno
import json

import obstore
import pytest

from chassis.identity import Role
from hub.domain.quota import Quota
from lexicon.faults import Fault, FaultCode
from tests.integration.hub.conftest import Hub
from tests.support.desk import calling
from tunesmith.api.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc

pytestmark = pytest.mark.integration


def rows(count: int = 3, *, tag: str = "") -> bytes:
    """A dataset of instructions."""
    lines = [
        json.dumps({"instruction": f"Say {number} {tag}", "output": f"{number}"})
        for number in range(count)
    ]
    return ("\n".join(lines) + "\n").encode()


async def refusal(call: object) -> Fault:
    with pytest.raises(Fault) as caught:
        await call  # type: ignore[misc]
    return caught.value


def get_request(dataset_id: str) -> dataset_service_pb2.GetDatasetRequest:
    return dataset_service_pb2.GetDatasetRequest(name=f"projects/acme/datasets/{dataset_id}")


async def listed(hub: Hub) -> list[str]:
    request = dataset_service_pb2.ListDatasetsRequest(parent="projects/acme")
    response = await hub.datasets.ListDatasets(request)
    return [each.name.rsplit("/", 1)[1] for each in response.datasets]


async def test_a_pushed_file_becomes_the_first_version_with_its_figures(hub: Hub) -> None:
    data = rows(3)
    response = await hub.push("greetings", data, file_name="../../etc/passwd.jsonl")
    version = response.version
    assert version.name == "projects/acme/datasets/greetings/versions/1"
    assert version.format == dataset_pb2.FORMAT_INSTRUCTION
    assert (version.row_count, version.size_bytes) == (3, len(data))
    assert version.file_name == "../../etc/passwd.jsonl"
    assert version.uri == ""
    assert response.dataset.latest.version == 1
    assert await listed(hub) == ["greetings"]
    assert not list(hub.objects_folder.parent.rglob("passwd*"))


async def test_services_are_told_where_the_bytes_lie(hub: Hub) -> None:
    data = rows()
    await hub.push("greetings", data)
    stub = dataset_service_pb2_grpc.DatasetServiceStub(hub.service_channel)
    found = await stub.GetDataset(get_request("greetings"))
    key = found.dataset.latest.uri.removeprefix("object://")
    assert b"".join([piece async for piece in await hub.objects.get(key)]) == data


async def test_another_file_is_the_next_version_and_equal_content_is_no_new_one(hub: Hub) -> None:
    await hub.push("greetings", rows(3))
    second = await hub.push("greetings", rows(4))
    again = await hub.push("greetings", rows(4))
    assert second.version.version == again.version.version == 2
    request = dataset_service_pb2.ListDatasetVersionsRequest(
        parent="projects/acme/datasets/greetings"
    )
    response = await hub.datasets.ListDatasetVersions(request)
    assert [each.version for each in response.versions] == [2, 1]
    assert len(hub.object_files()) == 2


async def test_committing_twice_gives_the_same_version(hub: Hub) -> None:
    upload = await hub.announce("greetings", rows())
    await hub.put(upload.url, rows())
    results = await asyncio.gather(*(hub.commit(upload.upload_id) for _ in range(8)))
    assert {each.version.version for each in results} == {1}
    assert {each.dataset.version_count for each in results} == {1}


@pytest.mark.parametrize(
    ("data", "file_name", "code"),
    [
        (b"\n\n", "rows.jsonl", FaultCode.DATASET_EMPTY),
        (
            b'{"instruction":"a","output":"b"}\n{"prompt":"a","completion":"b"}\n',
            "rows.jsonl",
            FaultCode.DATASET_FORMAT_MIXED,
        ),
        (
            b'{"instruction":"a","output":"b"}\n{"instruction":"a"}\n',
            "rows.jsonl",
            FaultCode.DATASET_FIELD_MISSING,
        ),
        (b'{"a": 1}\n', "rows.jsonl", FaultCode.DATASET_NO_VALID_ROWS),
        (b"\x00\x01\x02\xff" * 50, "rows.jsonl", FaultCode.DATASET_FILE_INVALID),
    ],
)
async def test_a_file_that_cannot_be_trained_on_creates_nothing(
    hub: Hub, data: bytes, file_name: str, code: FaultCode
) -> None:
    """Each with its code and a way out; nothing is created for any bad file."""
    upload = await hub.announce("bad", data, file_name=file_name)
    await hub.put(upload.url, data)
    first = await refusal(hub.commit(upload.upload_id))
    assert first.code is code
    assert first.remedy
    again = await refusal(hub.commit(upload.upload_id))
    assert (again.code, again.message, again.remedy) == (first.code, first.message, first.remedy)
    assert await listed(hub) == []
    assert (await refusal(hub.datasets.GetDataset(get_request("bad")))).code is (
        FaultCode.DATASET_NOT_FOUND
    )
    assert hub.object_files() == []


async def test_an_empty_file_is_refused_before_it_is_sent(hub: Hub) -> None:
    fault = await refusal(hub.announce("empty", b""))
    assert fault.code is FaultCode.DATASET_EMPTY


async def test_bytes_that_were_not_announced_are_refused(hub: Hub) -> None:
    data = rows()
    upload = await hub.announce("greetings", data)
    await hub.put(upload.url, data.replace(b"Say 0", b"Say 7"))
    fault = await refusal(hub.commit(upload.upload_id))
    assert fault.code is FaultCode.DATASET_CHECKSUM_MISMATCH
    assert await listed(hub) == []


async def test_a_put_of_another_size_is_refused(hub: Hub) -> None:
    """Attack 14: size bound."""
    upload = await hub.announce("greetings", rows())
    for wrong in (rows() + b"x", rows()[:-1]):
        fault = await refusal(hub.put(upload.url, wrong))
        assert fault.code is FaultCode.STORAGE_SIZE_MISMATCH


async def test_committing_before_the_bytes_came_says_so_and_may_be_tried_again(hub: Hub) -> None:
    upload = await hub.announce("greetings", rows())
    fault = await refusal(hub.commit(upload.upload_id))
    assert fault.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
    await hub.put(upload.url, rows())
    assert (await hub.commit(upload.upload_id)).version.version == 1


async def test_a_replayed_announcement_gives_the_same_upload_with_a_fresh_url(hub: Hub) -> None:
    request = dataset_service_pb2.CreateUploadRequest(
        request_id="r1", parent="projects/acme", dataset_id="d", size_bytes=3, sha256="0" * 64
    )
    first = await hub.datasets.CreateUpload(request)
    again = await hub.datasets.CreateUpload(request)
    assert first.upload_id == again.upload_id
    assert first.url != again.url
    request.size_bytes = 4
    fault = await refusal(hub.datasets.CreateUpload(request))
    assert fault.code is FaultCode.INPUT_REQUEST_ID_REUSED


@pytest.mark.parametrize(
    "dataset_id", ["..", "a/b", "A", "a b", "", "a" * 64, "../x", "a\x00", "é", "-a", "C:"]
)
async def test_hostile_dataset_ids_are_refused(hub: Hub, dataset_id: str) -> None:
    """Attack 11."""
    fault = await refusal(hub.announce(dataset_id, rows()))
    assert fault.code is FaultCode.INPUT_NAME_INVALID


@pytest.mark.parametrize("file_name", ["a\nb", "x" * 300, "\x7f"])
async def test_names_that_no_table_can_show_are_refused(hub: Hub, file_name: str) -> None:
    """Attack 11."""
    fault = await refusal(hub.announce("d", rows(), file_name=file_name))
    assert fault.code is FaultCode.INPUT_FIELD_INVALID


async def test_a_misspelt_dataset_is_answered_with_the_nearest_names(hub: Hub) -> None:
    """003-02: a nonexistent dataset is answered with nearest-name suggestions."""
    await hub.push("customer-chats", rows())
    await hub.push("poems", rows(5))
    fault = await refusal(hub.datasets.GetDataset(get_request("customers-chat")))
    assert fault.code is FaultCode.DATASET_NOT_FOUND
    assert "Did you mean customer-chats?" in fault.message
    assert fault.metadata["similar_names"] == "customer-chats"


async def test_a_deleted_dataset_is_told_apart_and_its_bytes_are_gone(hub: Hub) -> None:
    """The answer names the dataset that was deleted."""
    await hub.push("greetings", rows())
    request = dataset_service_pb2.DeleteDatasetRequest(
        request_id="d1", name="projects/acme/datasets/greetings"
    )
    first = await hub.datasets.DeleteDataset(request)
    assert await hub.datasets.DeleteDataset(request) == first
    fault = await refusal(hub.datasets.GetDataset(get_request("greetings")))
    assert fault.code is FaultCode.DATASET_DELETED
    assert "greetings" in fault.message
    version = dataset_service_pb2.GetDatasetVersionRequest(
        name="projects/acme/datasets/greetings/versions/1"
    )
    gone = await refusal(hub.datasets.GetDatasetVersion(version))
    assert gone.code is FaultCode.DATASET_DELETED
    assert await listed(hub) == []
    assert hub.object_files() == []


async def test_a_new_dataset_under_a_deleted_name_does_not_reuse_version_numbers(hub: Hub) -> None:
    await hub.push("greetings", rows(3))
    request = dataset_service_pb2.DeleteDatasetRequest(
        request_id="d1", name="projects/acme/datasets/greetings"
    )
    await hub.datasets.DeleteDataset(request)
    response = await hub.push("greetings", rows(3))
    assert response.version.version == 2
    assert await listed(hub) == ["greetings"]


async def test_parallel_uploads_never_exceed_the_quota_together(hub: Hub) -> None:
    """Attack 15: the storage quota is never exceeded by parallel uploads."""
    files = [rows(3, tag=f"{number:02}") for number in range(12)]
    hub.quotas["acme"] = Quota(dataset_bytes=len(files[0]) * 5, artifact_bytes=0)
    results = await asyncio.gather(
        *(hub.push(f"d-{number}", data) for number, data in enumerate(files)),
        return_exceptions=True,
    )
    refused = [each for each in results if isinstance(each, Fault)]
    assert {each.code for each in refused} == {FaultCode.QUOTA_DATASETS_EXCEEDED}
    assert len(await listed(hub)) == 5
    used = await hub.pool.fetchval("SELECT dataset_bytes FROM usage WHERE project = 'acme'")
    assert used == len(files[0]) * 5


async def test_a_smaller_quota_is_held_again_at_commit(hub: Hub) -> None:
    """Attack 15: what was announced under a larger plan does not slip in under a smaller one."""
    upload = await hub.announce("d", rows())
    await hub.put(upload.url, rows())
    hub.quotas["acme"] = Quota(dataset_bytes=1, artifact_bytes=0)
    fault = await refusal(hub.commit(upload.upload_id))
    assert fault.code is FaultCode.QUOTA_DATASETS_EXCEEDED
    hub.quotas["acme"] = Quota(dataset_bytes=1 << 20, artifact_bytes=0)
    assert (await hub.commit(upload.upload_id)).version.version == 1


async def test_deleting_frees_the_quota(hub: Hub) -> None:
    hub.quotas["acme"] = Quota(dataset_bytes=len(rows()), artifact_bytes=0)
    await hub.push("one", rows())
    assert (await refusal(hub.push("two", rows()))).code is FaultCode.QUOTA_DATASETS_EXCEEDED
    request = dataset_service_pb2.DeleteDatasetRequest(
        request_id="d", name="projects/acme/datasets/one"
    )
    await hub.datasets.DeleteDataset(request)
    assert (await hub.push("two", rows())).version.version == 1


async def test_a_delete_is_done_also_when_the_store_cannot_be_tidied(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.push("one", rows())
    request = dataset_service_pb2.DeleteDatasetRequest(
        request_id="d", name="projects/acme/datasets/one"
    )

    async def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(obstore, "put_async", refuse)
        full.setattr(obstore, "delete_async", refuse)
        await hub.datasets.DeleteDataset(request)
        assert hub.object_files() != []
    assert await hub.janitor.run_once() == 1
    assert hub.object_files() == []


async def test_uploads_that_never_came_are_given_up(hub: Hub) -> None:
    upload = await hub.announce("d", rows())
    await hub.put(upload.url, rows())
    await hub.pool.execute("UPDATE uploads SET expire_time = now() - interval '2 hours'")
    assert await hub.janitor.run_once() == 1
    assert hub.object_files() == []
    fault = await refusal(hub.commit(upload.upload_id))
    assert fault.code is FaultCode.DATASET_UPLOAD_NOT_FOUND


async def test_a_preview_shows_the_first_rows_as_stored(hub: Hub) -> None:
    await hub.push("greetings", '{"instruction":"Grüß","output":"Ö"}\n'.encode() + rows(9))
    request = dataset_service_pb2.PreviewDatasetRequest(
        name="projects/acme/datasets/greetings", row_count=2
    )
    response = await hub.datasets.PreviewDataset(request)
    assert [json.loads(each) for each in response.row_json] == [
        {"instruction": "Grüß", "output": "Ö"},
        {"instruction": "Say 0 ", "output": "0"},
    ]
    assert response.version.version == 1


async def test_datasets_are_listed_newest_first_in_pages(hub: Hub) -> None:
    for number in range(5):
        await hub.push(f"d-{number}", rows(number + 1))
    names: list[str] = []
    token = ""
    while True:
        request = dataset_service_pb2.ListDatasetsRequest(
            parent="projects/acme", page_size=2, page_token=token
        )
        page = await hub.datasets.ListDatasets(request)
        names += [each.name for each in page.datasets]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"projects/acme/datasets/d-{number}" for number in reversed(range(5))]


async def test_another_projects_datasets_are_out_of_reach(hub: Hub) -> None:
    await hub.push("greetings", rows())
    upload = await hub.announce("more", rows(4))
    async with calling(hub.address, Role.PROJECT, project="other") as channel:
        stub = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        name = "projects/acme/datasets/greetings"
        calls = [
            stub.GetDataset(get_request("greetings")),
            stub.ListDatasets(dataset_service_pb2.ListDatasetsRequest(parent="projects/acme")),
            stub.PreviewDataset(dataset_service_pb2.PreviewDatasetRequest(name=name)),
            stub.DeleteDataset(dataset_service_pb2.DeleteDatasetRequest(request_id="x", name=name)),
        ]
        for call in calls:
            assert (await refusal(call)).code is FaultCode.ACCESS_PROJECT_FORBIDDEN
        theirs = dataset_service_pb2.CommitUploadRequest(
            request_id="x", parent="projects/other", upload_id=upload.upload_id
        )
        fault = await refusal(stub.CommitUpload(theirs))
        assert fault.code is FaultCode.DATASET_UPLOAD_NOT_FOUND


@pytest.mark.parametrize("upload_id", ["", "a\x00b", "../x", "x" * 500])
async def test_hostile_upload_ids_are_refused(hub: Hub, upload_id: str) -> None:
    """Attack 11."""
    assert (await refusal(hub.commit(upload_id))).code is FaultCode.INPUT_NAME_INVALID
