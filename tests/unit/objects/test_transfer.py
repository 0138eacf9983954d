"""Transfers over signed URLs: resumed, verified, retried, and never outside their folder."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import stamina

from lexicon.faults import Fault, FaultCode
from objects import transfer
from objects.local_files import describe, safe_path
from objects.transfer import MAX_ATTEMPTS, download, download_shared, upload

URL = "http://store.test/objects/k"
DATA = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=MAX_ATTEMPTS):
        yield


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that is to be fetched, as a task's inputs name it."""

    path: str = "model/weights.bin"
    url: str = URL
    size_bytes: int = len(DATA)
    sha256: str = hashlib.sha256(DATA).hexdigest()


@dataclass(kw_only=True)
class Store:
    """A store at the other end: serves ranges, takes bodies, and fails as it is told to."""

    data: bytes = DATA
    troubles: list[Callable[[httpx.Request], httpx.Response | None]] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    taken: bytes = b""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "PUT":
            self.taken = await request.aread()
        if self.troubles and (trouble := self.troubles.pop(0)(request)) is not None:
            return trouble
        if request.method == "PUT":
            return httpx.Response(201)
        return self.part(request)

    def part(self, request: httpx.Request) -> httpx.Response:
        span = request.headers.get("range")
        if span is None:
            return httpx.Response(200, content=self.data)
        start = int(span.removeprefix("bytes=").rstrip("-"))
        headers = {"content-range": f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"}
        return httpx.Response(206, content=self.data[start:], headers=headers)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self.answer))


def status(code: int, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request: httpx.Response(code, headers=named)


def cut_after(count: int) -> Callable[[httpx.Request], httpx.Response]:
    """The connection breaks after some bytes."""

    async def broken(data: bytes) -> AsyncIterator[bytes]:
        yield data[:count]
        raise httpx.ReadError("connection reset")

    return lambda _request: httpx.Response(200, content=broken(DATA))


def refused(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


async def fetched(store: Store, folder: Path, *files: File, **options: object) -> list[Path]:
    async with store.client() as client:
        return await download(files or (File(),), folder, client=client, **options)  # type: ignore[arg-type]


async def code_of(store: Store, folder: Path, *files: File) -> FaultCode:
    with pytest.raises(Fault) as caught:
        await fetched(store, folder, *files)
    return caught.value.code


def leave_partial(folder: Path, data: bytes) -> None:
    """What a process leaves that died in the middle of a download."""
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin.partial").write_bytes(data)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_file_arrives_whole_in_its_folder_and_bytes_are_counted(tmp_path: Path) -> None:
    counted: list[int] = []
    (path,) = await fetched(Store(), tmp_path, on_bytes=counted.append)
    assert path == tmp_path / "model" / "weights.bin"
    assert path.read_bytes() == DATA
    assert sum(counted) == len(DATA)
    assert [each.name for each in path.parent.iterdir()] == ["weights.bin"]


async def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    await fetched(Store(), tmp_path)
    store = Store()
    await fetched(store, tmp_path)
    assert store.requests == []


async def test_a_file_with_other_content_is_fetched_again(tmp_path: Path) -> None:
    (path,) = await fetched(Store(), tmp_path)
    path.write_bytes(b"x" * len(DATA))
    (path,) = await fetched(Store(), tmp_path)
    assert path.read_bytes() == DATA


async def test_a_cut_transfer_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    store = Store(troubles=[cut_after(400_000)])
    (path,) = await fetched(store, tmp_path)
    assert path.read_bytes() == DATA
    assert [each.headers.get("range") for each in store.requests] == [None, "bytes=400000-"]


async def test_what_an_earlier_process_left_is_continued(tmp_path: Path) -> None:
    leave_partial(tmp_path, DATA[:1000])
    store = Store()
    (path,) = await fetched(store, tmp_path)
    assert path.read_bytes() == DATA
    assert store.requests[0].headers["range"] == "bytes=1000-"


async def test_a_store_without_ranges_is_read_from_the_beginning(tmp_path: Path) -> None:
    leave_partial(tmp_path, DATA[:1000])
    whole = lambda _request: httpx.Response(200, content=DATA)  # noqa: E731 - named for the reader
    (path,) = await fetched(Store(troubles=[whole]), tmp_path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("code", [429, 500, 502, 503])
async def test_a_store_that_is_away_for_a_moment_is_asked_again(tmp_path: Path, code: int) -> None:
    store = Store(troubles=[status(code), refused, status(code)])
    (path,) = await fetched(store, tmp_path)
    assert path.read_bytes() == DATA
    assert len(store.requests) == 4


async def test_a_store_that_stays_away_is_reported_after_a_bounded_number_of_tries(
    tmp_path: Path,
) -> None:
    store = Store(troubles=[refused] * 100)
    assert await code_of(store, tmp_path) is FaultCode.DEP_SERVICE_UNAVAILABLE
    assert len(store.requests) == MAX_ATTEMPTS


async def test_other_bytes_never_get_the_files_name(tmp_path: Path) -> None:
    other = DATA[:-1] + b"\x00"
    assert await code_of(Store(data=other), tmp_path) is FaultCode.STORAGE_CHECKSUM_MISMATCH
    assert files_in(tmp_path) == []


async def test_a_file_that_is_too_long_is_cut_off_and_refused(tmp_path: Path) -> None:
    store = Store(data=DATA + b"x" * 10_000_000)
    assert await code_of(store, tmp_path) is FaultCode.STORAGE_CHECKSUM_MISMATCH
    assert files_in(tmp_path) == []


async def test_an_ended_url_is_renewed_once_asked_for(tmp_path: Path) -> None:
    store = Store(troubles=[status(403, x_tunesmith_code="STORAGE_URL_EXPIRED")])

    async def fresh(_file: object, _ended: str) -> str:
        return URL + "?fresh"

    await fetched(store, tmp_path, refresh=fresh)
    assert str(store.requests[-1].url) == URL + "?fresh"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (status(403), FaultCode.STORAGE_URL_EXPIRED),
        (status(403, x_tunesmith_code="STORAGE_URL_INVALID"), FaultCode.STORAGE_URL_INVALID),
        (status(403, x_tunesmith_code="NONSENSE"), FaultCode.STORAGE_URL_EXPIRED),
        (status(404), FaultCode.STORAGE_OBJECT_NOT_FOUND),
        (status(302, location="http://169.254.169.254/"), FaultCode.STORAGE_URL_INVALID),
        (status(400), FaultCode.STORAGE_URL_INVALID),
    ],
)
async def test_a_refusal_keeps_its_code_and_is_not_repeated(
    tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response], code: FaultCode
) -> None:
    """Attack 13: a redirect is not followed."""
    store = Store(troubles=[answer] * 3)
    assert await code_of(store, tmp_path) is code
    assert len(store.requests) == 1


async def test_a_full_disk_has_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while the file is written."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_append", full)
    assert await code_of(Store(), tmp_path) is FaultCode.STORAGE_FULL


async def test_one_bad_file_of_many_fails_with_its_own_code(tmp_path: Path) -> None:
    files = [File(path=f"f{number}") for number in range(6)]
    bad = File(path="bad", sha256="0" * 64)
    assert await code_of(Store(), tmp_path, *files, bad) is FaultCode.STORAGE_CHECKSUM_MISMATCH


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        ".",
        "..",
        "C:\\x",
        "C:/x",
        "a\\..\\x",
        "a\x00b",
        "a\nb",
        "a\u202eb",
        "x" * 600,
        'a"b',
        "con|x",
    ],
)
async def test_paths_that_lead_out_are_refused_before_anything_is_fetched(
    tmp_path: Path, relative: str
) -> None:
    """Attack 11."""
    store = Store()
    assert await code_of(store, tmp_path / "in", File(path=relative)) is (
        FaultCode.STORAGE_KEY_INVALID
    )
    assert store.requests == []


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    """Attack 11, attack 12."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(inside / "other")
    for relative in ("link/x", "file"):
        with pytest.raises(Fault) as caught:
            safe_path(inside, relative)
        assert caught.value.code is FaultCode.STORAGE_KEY_INVALID
    assert safe_path(inside, "a/b.txt") == inside.resolve() / "a" / "b.txt"


async def test_a_file_is_put_with_its_length_and_described(tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(DATA)
    store = Store()
    counted: list[int] = []
    async with store.client() as client:
        local = await upload(path, URL, client=client, on_bytes=counted.append)
    assert store.taken == DATA
    assert store.requests[0].headers["content-length"] == str(len(DATA))
    assert (local.size_bytes, local.sha256) == (len(DATA), File().sha256)
    assert sum(counted) == len(DATA)


async def test_an_upload_is_repeated_and_counts_its_bytes_once(tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(DATA)
    store = Store(troubles=[status(503), refused])
    counted: list[int] = []
    async with store.client() as client:
        await upload(path, URL, client=client, on_bytes=counted.append)
    assert len(store.requests) == 3
    assert sum(counted) == len(DATA)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (status(409), FaultCode.STORAGE_OBJECT_EXISTS),
        (status(413), FaultCode.STORAGE_SIZE_MISMATCH),
        (status(507), FaultCode.STORAGE_FULL),
        (status(403, x_tunesmith_code="STORAGE_URL_INVALID"), FaultCode.STORAGE_URL_INVALID),
    ],
)
async def test_a_refused_upload_keeps_its_code(
    tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response], code: FaultCode
) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(DATA)
    store = Store(troubles=[answer])
    async with store.client() as client:
        with pytest.raises(Fault) as caught:
            await upload(path, URL, client=client)
    assert caught.value.code is code


async def test_an_upload_with_an_ended_url_asks_for_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(DATA)
    store = Store(troubles=[status(403)])

    async def fresh() -> str:
        return URL + "?fresh"

    async with store.client() as client:
        await upload(path, URL, client=client, refresh=fresh)
    assert store.taken == DATA
    assert str(store.requests[-1].url) == URL + "?fresh"


def test_describing_a_file_gives_size_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    assert describe(path).sha256 == hashlib.sha256(b"").hexdigest()
    assert describe(path).size_bytes == 0


async def test_a_folder_that_processes_share_is_fetched_once(tmp_path: Path) -> None:
    """001-24: trainers of one machine begin on the same base, and neither mixes up its bytes."""
    store, folder = Store(), tmp_path / "store" / "digest"
    async with store.client() as http:
        await asyncio.gather(*(download_shared([File()], folder, client=http) for _ in range(3)))
        await download_shared([File()], folder, client=http)
    assert len(store.requests) == 1
    assert (folder / "model" / "weights.bin").read_bytes() == DATA


async def test_a_folder_whose_fetch_failed_is_fetched_again(tmp_path: Path) -> None:
    store, folder = Store(troubles=[status(404)]), tmp_path / "digest"
    async with store.client() as http:
        with pytest.raises(Fault):
            await download_shared([File()], folder, client=http)
        await download_shared([File()], folder, client=http)
    assert (folder / "model" / "weights.bin").read_bytes() == DATA
