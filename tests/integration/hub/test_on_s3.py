"""The hub with its objects on S3: files are inspected from a copy, URLs and deletion as ever."""

from collections.abc import AsyncIterator

import pytest

from lexicon.faults import FaultCode
from tests.integration.hub.conftest import Hub
from tests.integration.hub.test_artifacts import download, registered
from tests.integration.hub.test_datasets import refusal, rows
from tests.support.s3 import Bucket, environment, serving_bucket
from tunesmith.api.dataset.v1 import dataset_service_pb2

pytestmark = pytest.mark.integration


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with serving_bucket() as (endpoint, bucket):
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def objects_url(bucket: Bucket) -> str:
    assert bucket.objects == {}
    return "s3://bucket/hub"


async def test_a_dataset_is_pushed_previewed_and_deleted(hub: Hub, bucket: Bucket) -> None:
    await hub.push("greetings", rows(3))
    name = "projects/acme/datasets/greetings"
    preview = await hub.datasets.PreviewDataset(
        dataset_service_pb2.PreviewDatasetRequest(name=name)
    )
    assert len(preview.row_json) == 3
    await hub.datasets.DeleteDataset(
        dataset_service_pb2.DeleteDatasetRequest(request_id="d", name=name)
    )
    left = [key for key in bucket.objects if "/datasets/" in key]
    assert [key.rsplit("/", 1)[1] for key in left] == ["_manifest.json"]


async def test_a_bad_file_is_refused_and_gone(hub: Hub) -> None:
    fault = await refusal(hub.push("bad", b'{"a": 1}\n'))
    assert fault.code is FaultCode.DATASET_NO_VALID_ROWS


async def test_an_artifact_is_downloaded_by_a_signed_url(hub: Hub) -> None:
    await registered(hub, b"adapter", key="runs/run-1/1/adapter.zip")
    response = await hub.artifacts.CreateDownload(download())
    assert await hub.get(response.url) == b"adapter"
