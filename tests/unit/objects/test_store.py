"""The object store on a folder: whole or not at all, once and for good."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from lexicon.faults import Fault, FaultCode
from objects.store import CHUNK_BYTES, ObjectStore, open_store

LIMIT = 64 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder with a space"


@pytest.fixture
def store(folder: Path) -> ObjectStore:
    return open_store(folder.as_uri())


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in await store.get(key, start=start, end=end)])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_object_comes_back_as_it_was_put_with_size_and_sha256(store: ObjectStore) -> None:
    data = bytes(range(256)) * 20_000
    info = await store.put("a/b", pieces(data[:100], b"", data[100:]), size_limit=LIMIT)
    assert info.size_bytes == len(data)
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert await store.head("a/b") == info
    assert await content(store, "a/b") == data


async def test_a_file_larger_than_a_part_is_stored_whole(
    store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"z" * (CHUNK_BYTES * 12 + 7))
    info = await store.put("big", path, size_limit=LIMIT)
    assert info.size_bytes == path.stat().st_size
    assert hashlib.sha256(await content(store, "big")).hexdigest() == info.sha256


async def test_empty_objects_and_ranges_are_exact(store: ObjectStore) -> None:
    await store.put("empty", pieces(), size_limit=LIMIT)
    assert await content(store, "empty") == b""
    await store.put("ten", pieces(b"0123456789"), size_limit=LIMIT)
    assert await content(store, "ten", 2, 5) == b"234"
    assert await content(store, "ten", 8, 100) == b"89"
    assert await content(store, "ten", 10) == b""


async def test_what_is_not_there_is_told_apart(store: ObjectStore) -> None:
    assert await store.head("none") is None
    with pytest.raises(Fault) as caught:
        await store.get("none")
    assert caught.value.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
    await store.delete("none")


@pytest.mark.parametrize("sent", [b"x" * 9, b"x" * 11])
async def test_another_size_than_announced_stores_nothing(
    store: ObjectStore, folder: Path, sent: bytes
) -> None:
    """Attack 14: the size bound of a URL for PUT."""
    with pytest.raises(Fault) as caught:
        await store.put("k", pieces(sent), size_limit=LIMIT, exact_bytes=10)
    assert caught.value.code is FaultCode.STORAGE_SIZE_MISMATCH
    assert await store.head("k") is None
    assert not [path for path in files(folder) if path.name == "_manifest.json"]


async def test_more_than_the_limit_stores_nothing(store: ObjectStore) -> None:
    with pytest.raises(Fault) as caught:
        await store.put("k", pieces(b"x" * 6, b"x" * 6), size_limit=10)
    assert caught.value.code is FaultCode.STORAGE_SIZE_MISMATCH
    assert await store.head("k") is None


async def test_a_cut_upload_stores_nothing_and_can_be_repeated(
    store: ObjectStore, folder: Path
) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"x" * (8 << 20)
        raise ConnectionResetError

    with pytest.raises((ConnectionResetError, Fault)):
        await store.put("k", cut(), size_limit=LIMIT)
    assert await store.head("k") is None
    assert files(folder) == []
    await store.put("k", pieces(b"whole"), size_limit=LIMIT)
    assert await content(store, "k") == b"whole"


async def test_the_same_bytes_again_change_nothing_and_other_bytes_are_refused(
    store: ObjectStore, folder: Path
) -> None:
    """Attack 14: a URL that is still alive cannot replace what was checked."""
    first = await store.put("k", pieces(b"one"), size_limit=LIMIT)
    assert await store.put("k", pieces(b"o", b"ne"), size_limit=LIMIT) == first
    with pytest.raises(Fault) as caught:
        await store.put("k", pieces(b"two"), size_limit=LIMIT)
    assert caught.value.code is FaultCode.STORAGE_OBJECT_EXISTS
    assert await content(store, "k") == b"one"
    assert len(files(folder)) == 2


async def test_of_many_writers_of_one_key_one_wins_whole(store: ObjectStore) -> None:
    async def write(number: int) -> str:
        data = bytes([number]) * 100_000
        return (await store.put("k", pieces(data), size_limit=LIMIT)).sha256

    results = await asyncio.gather(*map(write, range(20)), return_exceptions=True)
    digests = {each for each in results if isinstance(each, str)}
    codes = {each.code for each in results if isinstance(each, Fault)}
    assert len(digests) == 1
    assert codes == {FaultCode.STORAGE_OBJECT_EXISTS}
    assert hashlib.sha256(await content(store, "k")).hexdigest() in digests


async def test_a_deleted_object_is_gone_and_its_key_is_used_up(
    store: ObjectStore, folder: Path
) -> None:
    """Attack 14: replay after deletion."""
    await store.put("k", pieces(b"one"), size_limit=LIMIT)
    await store.delete("k")
    assert await store.head("k") is None
    with pytest.raises(Fault) as caught:
        await store.get("k")
    assert caught.value.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
    with pytest.raises(Fault) as caught:
        await store.put("k", pieces(b"one"), size_limit=LIMIT)
    assert caught.value.code is FaultCode.STORAGE_OBJECT_EXISTS
    assert [path.name for path in files(folder)] == ["_manifest.json"]


async def test_deleting_frees_a_disk_that_has_no_room_for_a_marker(
    store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", pieces(b"one"), size_limit=LIMIT)
    put = obstore.put_async

    async def put_on_a_full_disk(*args: Any, **options: Any) -> Any:
        if any(path.name != "_manifest.json" for path in files(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return await put(*args, **options)

    monkeypatch.setattr(obstore, "put_async", put_on_a_full_disk)
    await store.delete("k")
    assert await store.head("k") is None
    assert [path.name for path in files(folder)] == ["_manifest.json"]


async def test_a_week_later_what_nobody_refers_to_is_swept(
    store: ObjectStore, folder: Path
) -> None:
    await store.put("kept", pieces(b"kept"), size_limit=LIMIT)
    await store.put("deleted", pieces(b"deleted"), size_limit=LIMIT)
    await store.delete("deleted")
    (folder / "orphan").mkdir()
    (folder / "orphan" / "_00ff").write_bytes(b"left by a writer that died")
    now = datetime.now(UTC)
    assert await store.sweep(now=now) == 0
    assert await store.sweep(now=now + timedelta(days=8)) == 2
    assert {path.parent.name for path in files(folder)} == {"kept"}
    assert await content(store, "kept") == b"kept"


@pytest.mark.parametrize(
    "url", ["", "/folder", "file://host/x", "file:relative", "gs://b", "s3://"]
)
def test_other_urls_are_refused_at_start(url: str) -> None:
    with pytest.raises(Fault) as caught:
        open_store(url)
    assert caught.value.code is FaultCode.CONFIG_INVALID


async def test_hostile_keys_reach_no_file(store: ObjectStore, folder: Path) -> None:
    """Attack 11."""
    for key in ("../out", "/etc/x", "a/../../out", "a\x00b", "_manifest.json", "%2e%2e/out"):
        with pytest.raises(Fault) as caught:
            await store.put(key, pieces(b"x"), size_limit=LIMIT)
        assert caught.value.code is FaultCode.STORAGE_KEY_INVALID
        with pytest.raises(Fault):
            await store.head(key)
    assert files(folder.parent) == []
