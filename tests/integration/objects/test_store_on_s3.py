"""The object store on S3: the same promises as in a folder, over the real driver and HTTP."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lexicon.faults import Fault, FaultCode
from objects.store import ObjectStore, open_store
from tests.support.s3 import Bucket, environment, serving_bucket

pytestmark = pytest.mark.integration

LIMIT = 64 << 20


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with serving_bucket() as (endpoint, bucket):
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def store(bucket: Bucket) -> ObjectStore:
    assert bucket.objects == {}
    return open_store("s3://bucket/tune/smith")


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in await store.get(key, start=start, end=end)])


async def test_an_object_comes_back_as_it_was_put(store: ObjectStore, bucket: Bucket) -> None:
    info = await store.put("a/b", pieces(b"one", b"two"), size_limit=LIMIT)
    assert info.sha256 == hashlib.sha256(b"onetwo").hexdigest()
    assert await store.head("a/b") == info
    assert await content(store, "a/b") == b"onetwo"
    assert await content(store, "a/b", 1, 4) == b"net"
    assert all(key.startswith("tune/smith/a/b/_") for key in bucket.objects)
    assert await store.local_path("a/b") is None


async def test_a_large_file_goes_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 60_000)
    info = await store.put("weights", path, size_limit=LIMIT)
    assert info.size_bytes == path.stat().st_size
    assert hashlib.sha256(await content(store, "weights")).hexdigest() == info.sha256


async def test_a_key_is_written_once(store: ObjectStore, bucket: Bucket) -> None:
    """Attack 14: a URL that is still alive cannot replace what was checked."""
    first = await store.put("k", pieces(b"one"), size_limit=LIMIT)
    assert await store.put("k", pieces(b"one"), size_limit=LIMIT) == first
    with pytest.raises(Fault) as caught:
        await store.put("k", pieces(b"two"), size_limit=LIMIT)
    assert caught.value.code is FaultCode.STORAGE_OBJECT_EXISTS
    assert len(bucket.objects) == 2


async def test_of_many_writers_of_one_key_one_wins(store: ObjectStore) -> None:
    results = await asyncio.gather(
        *(store.put("k", pieces(b"%d" % number), size_limit=LIMIT) for number in range(10)),
        return_exceptions=True,
    )
    refused = [each for each in results if isinstance(each, Fault)]
    assert len(refused) == 9
    assert {each.code for each in refused} == {FaultCode.STORAGE_OBJECT_EXISTS}


async def test_a_deleted_object_is_gone_and_leaves_a_marker(
    store: ObjectStore, bucket: Bucket
) -> None:
    """Attack 14: replay after deletion."""
    await store.put("a/k", pieces(b"one"), size_limit=LIMIT)
    await store.put("a/l", pieces(b"two"), size_limit=LIMIT)
    await store.delete("a/k")
    assert await store.head("a/k") is None
    assert await store.keys("a") == ["a/l"]
    with pytest.raises(Fault) as caught:
        await store.put("a/k", pieces(b"one"), size_limit=LIMIT)
    assert caught.value.code is FaultCode.STORAGE_OBJECT_EXISTS
    assert await store.sweep(now=datetime.now(UTC) + timedelta(days=8)) == 1
    assert all("/a/l/" in key for key in bucket.objects)


async def test_what_is_not_there_is_told_apart(store: ObjectStore) -> None:
    assert await store.head("none") is None
    with pytest.raises(Fault) as caught:
        await store.get("none")
    assert caught.value.code is FaultCode.STORAGE_OBJECT_NOT_FOUND


async def test_a_moment_of_trouble_is_ridden_out(store: ObjectStore, bucket: Bucket) -> None:
    bucket.troubles = [503, 500]
    await store.put("k", pieces(b"one"), size_limit=LIMIT)
    assert await content(store, "k") == b"one"


async def test_a_store_that_refuses_us_is_a_dependency_that_fails(
    store: ObjectStore, bucket: Bucket
) -> None:
    bucket.troubles = [403] * 5
    with pytest.raises(Fault) as caught:
        await store.head("k")
    assert caught.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE
