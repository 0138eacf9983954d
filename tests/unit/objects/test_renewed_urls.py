"""Downloads whose URLs end on the way: renewed, continued, and given up with the right words."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import stamina

from lexicon.faults import Fault, FaultCode, Owner
from objects.transfer import MAX_ATTEMPTS, MAX_RENEWALS, PROGRESS_BYTES, RemoteFile, download
from tunesmith.api.work.v1 import work_pb2

DATA = bytes(range(256)) * (5 * PROGRESS_BYTES // 256) + b"end"
LIFE_MINUTES = 15


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=MAX_ATTEMPTS):
        yield


@dataclass(kw_only=True)
class Source:
    """A store whose clock goes on with each piece that it sends; a URL names its last minute.

    Attributes:
        cut_after: pieces after which an answer breaks off; 0 for never.
        refusal: what an ended URL is told; none as by S3.
    """

    piece_minutes: int = 6
    piece_bytes: int = PROGRESS_BYTES
    cut_after: int = 0
    has_ranges: bool = True
    refusal: str = "STORAGE_URL_EXPIRED"
    now_minutes: int = 0
    starts: dict[str, list[int]] = field(default_factory=dict)
    refused_count: int = 0
    renewed_count: int = 0

    def file(self, path: str) -> work_pb2.InputFile:
        return work_pb2.InputFile(
            path=path,
            url=f"http://store.test/{path}?until={LIFE_MINUTES}",
            size_bytes=len(DATA),
            sha256=hashlib.sha256(DATA).hexdigest(),
        )

    async def renewed(self, file: RemoteFile, ended_url: str) -> str:
        assert ended_url.startswith(f"http://store.test/{file.path}?")
        self.renewed_count += 1
        return f"http://store.test/{file.path}?until={self.now_minutes + LIFE_MINUTES}"

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.now_minutes >= int(request.url.params["until"]):
            self.refused_count += 1
            named = {"x-tunesmith-code": self.refusal} if self.refusal else {}
            return httpx.Response(403, headers=named)
        span = request.headers.get("range")
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.has_ranges else 0
        self.starts.setdefault(request.url.path[1:], []).append(start)
        headers = {"content-range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
        status = 206 if span and self.has_ranges else 200
        return httpx.Response(status, headers=headers, content=self._slowly(start))

    async def _slowly(self, start: int) -> AsyncIterator[bytes]:
        for count, place in enumerate(range(start, len(DATA), self.piece_bytes)):
            if self.cut_after and count == self.cut_after:
                raise httpx.ReadError("connection reset")
            yield DATA[place : place + self.piece_bytes]
            self.now_minutes += self.piece_minutes


async def fetched(source: Source, folder: Path, *paths: str) -> list[Path]:
    files = [source.file(path) for path in paths or ("weights",)]
    async with httpx.AsyncClient(transport=httpx.MockTransport(source.answer)) as client:
        return await download(files, folder, refresh=source.renewed, client=client)


@pytest.mark.parametrize("refusal", ["STORAGE_URL_EXPIRED", "STORAGE_URL_INVALID", ""])
@pytest.mark.parametrize("cut_after", [1, 2, 3])
async def test_a_url_that_ends_within_a_file_is_renewed_and_the_file_goes_on(
    tmp_path: Path, cut_after: int, refusal: str
) -> None:
    """001-24: no byte comes twice, also where the key that had signed the URL was withdrawn."""
    source = Source(cut_after=cut_after, refusal=refusal)
    (path,) = await fetched(source, tmp_path)
    assert path.read_bytes() == DATA
    assert source.starts["weights"] == list(range(0, len(DATA), cut_after * PROGRESS_BYTES))
    assert source.renewed_count == source.refused_count >= 1


async def test_a_url_that_ends_while_its_answer_goes_on_is_not_renewed(tmp_path: Path) -> None:
    """001-24."""
    source = Source()
    (path,) = await fetched(source, tmp_path)
    assert path.read_bytes() == DATA
    assert source.now_minutes > 2 * LIFE_MINUTES
    assert source.renewed_count == 0


async def test_later_files_whose_urls_ended_meanwhile_are_fetched(tmp_path: Path) -> None:
    """001-24: those that are whole stay; each file's first byte comes once."""
    # So slow that a URL never ends while the pieces of other files overtake the next request.
    source = Source(piece_minutes=1)
    names = [f"model-{number}" for number in range(9)]
    paths = await fetched(source, tmp_path, *names)
    assert all(path.read_bytes() == DATA for path in paths)
    assert source.starts == {name: [0] for name in names}
    assert 0 < source.renewed_count <= source.refused_count


async def test_a_line_that_breaks_often_is_borne_while_it_brings_bytes(tmp_path: Path) -> None:
    """001-24: patience is counted from the last progress, not from the begin of the file."""
    source = Source(cut_after=1, piece_bytes=PROGRESS_BYTES // 8, piece_minutes=3)
    (path,) = await fetched(source, tmp_path)
    assert path.read_bytes() == DATA
    assert len(source.starts["weights"]) > 3 * MAX_ATTEMPTS


async def test_a_line_that_brings_next_to_nothing_is_given_up(tmp_path: Path) -> None:
    source = Source(cut_after=1, piece_bytes=PROGRESS_BYTES // 64, piece_minutes=0)
    with pytest.raises(Fault) as caught:
        await fetched(source, tmp_path)
    assert caught.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE
    assert len(source.starts["weights"]) == MAX_ATTEMPTS


async def test_a_store_without_ranges_is_not_tried_for_ever(tmp_path: Path) -> None:
    """It brings its first bytes again and again; that is no progress."""
    source = Source(cut_after=2, has_ranges=False, piece_minutes=0)
    with pytest.raises(Fault) as caught:
        await fetched(source, tmp_path)
    assert caught.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE
    assert len(source.starts["weights"]) <= 3 * MAX_ATTEMPTS


async def test_urls_that_are_refused_as_soon_as_they_are_signed_are_the_platforms_fault(
    tmp_path: Path,
) -> None:
    """A signer whose clock is behind; a bounded number of tries, and who is to look."""
    source = Source(now_minutes=100, piece_minutes=0)

    async def late(file: RemoteFile, _ended: str) -> str:
        source.renewed_count += 1
        return f"http://store.test/{file.path}?until={source.renewed_count}"

    async with httpx.AsyncClient(transport=httpx.MockTransport(source.answer)) as client:
        with pytest.raises(Fault) as caught:
            await download([source.file("weights")], tmp_path, refresh=late, client=client)
    assert caught.value.code is FaultCode.STORAGE_URL_NOT_RENEWED
    assert caught.value.row.owner is Owner.PLATFORM
    assert caught.value.retryable
    assert caught.value.metadata == {"path": "weights", "cause": "STORAGE_URL_EXPIRED"}
    assert source.renewed_count == MAX_RENEWALS


async def test_what_the_renewal_meets_is_told_as_it_is(tmp_path: Path) -> None:
    """A lease that was lost meanwhile ends the download at once."""
    source = Source(now_minutes=100)

    async def lost(_file: RemoteFile, _ended: str) -> str:
        raise Fault(FaultCode.RUN_LEASE_LOST)

    async with httpx.AsyncClient(transport=httpx.MockTransport(source.answer)) as client:
        with pytest.raises(Fault) as caught:
            await download([source.file("weights")], tmp_path, refresh=lost, client=client)
    assert caught.value.code is FaultCode.RUN_LEASE_LOST
    assert source.refused_count == 1


async def test_other_bytes_under_a_fresh_url_are_refused(tmp_path: Path) -> None:
    """attacks 14: the digest of the lease counts, whatever the URL."""
    source = Source(cut_after=3)

    async def elsewhere(_file: RemoteFile, _ended: str) -> str:
        return "http://store.test/other?until=1000"

    file = source.file("weights")
    file.sha256 = "0" * 64
    async with httpx.AsyncClient(transport=httpx.MockTransport(source.answer)) as client:
        with pytest.raises(Fault) as caught:
            await download([file], tmp_path, refresh=elsewhere, client=client)
    assert caught.value.code is FaultCode.STORAGE_CHECKSUM_MISMATCH
    assert not (tmp_path / "weights").exists()
