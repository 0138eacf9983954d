"""Files over signed URLs: downloads that resume and are verified, uploads that may be repeated.

What comes from the network is not trusted: a path that would leave its folder, a byte too many or a
digest that differs ends the transfer with a code, and nothing half-done ever bears the final name
(`.partial`, then rename).
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

import httpx
import stamina

from lexicon.faults import Fault, FaultCode
from objects.local_files import LocalFile, alone, describe, disk_errors, safe_path, settle

CHUNK_BYTES: Final = 1 << 20

# Four streams fill a 10 Gbit/s line from one store; more only compete for the disk.
PARALLEL_FILES: Final = 4

# Patience of one file: about three minutes of a store that is away, then the worker reports it.
MAX_ATTEMPTS: Final = 12
# An attempt that brought so much shows that the store is there: retries are counted from 0 again.
PROGRESS_BYTES: Final = CHUNK_BYTES
# A URL may have been renewed for another file long ago, and be refused as well; the next is new.
MAX_RENEWALS: Final = 3
MAX_WAIT_SECONDS: Final = 20.0
READ_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 10.0

# In a folder that several processes share: all of its files are there.
COMPLETE_MARK: Final = ".complete"

_PARTIAL: Final = ".partial"
# With a fresh URL these may pass: its time was over, or the key that had signed it was withdrawn.
_ENDED: Final = frozenset({FaultCode.STORAGE_URL_EXPIRED, FaultCode.STORAGE_URL_INVALID})
_RETRY_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

OnBytes = Callable[[int], None]


class RemoteFile(Protocol):
    """A file to fetch; `tunesmith.api.work.v1.InputFile` is one."""

    @property
    def path(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


# A URL in the place of one that the store no longer takes.
Refresh = Callable[[RemoteFile, str], Awaitable[str]]


class _Again(Exception):
    """The transfer did not come through this time; trying again may help."""


async def download(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    on_bytes: OnBytes | None = None,
    refresh: Refresh | None = None,
    client: httpx.AsyncClient | None = None,
) -> list[Path]:
    """Fetches files below a folder and returns their paths in the order given.

    A file that lies there whole is not fetched again; a `.partial` one is continued.

    Args:
        on_bytes: called with the number of new bytes as they come, also for those already there.
        refresh: gives a fresh URL when the store says that the old one has ended; what has arrived
            by then stays.
    Raises:
        Fault: STORAGE_CHECKSUM_MISMATCH, STORAGE_OBJECT_NOT_FOUND, STORAGE_FULL,
            STORAGE_KEY_INVALID (a path that would leave the folder), DEP_SERVICE_UNAVAILABLE;
            without `refresh` STORAGE_URL_INVALID and STORAGE_URL_EXPIRED, with it
            STORAGE_URL_NOT_RENEWED and what `refresh` raises.
    """
    targets = [safe_path(folder, file.path) for file in files]
    gate = asyncio.Semaphore(PARALLEL_FILES)
    async with _client(client) as http:

        async def fetch(file: RemoteFile, target: Path) -> None:
            async with gate:
                await _Download(http, file, target, on_bytes or _ignore, refresh).run()

        await _all_or_first_fault(
            [fetch(file, target) for file, target in zip(files, targets, strict=True)]
        )
    return targets


async def download_shared(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    refresh: Refresh | None = None,
    client: httpx.AsyncClient | None = None,
) -> None:
    """Fetches files into a folder that several processes of this machine use, once for all.

    Who comes second waits: two that continue the same `.partial` would mix their bytes. A mark in
    the folder says that it is whole, and spares the hashing of gigabytes before every use.

    Raises:
        Fault: as `download` does.
    """
    mark = folder / COMPLETE_MARK
    if mark.exists():
        return
    with disk_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
    async with alone(folder.with_name(folder.name + ".lock")):
        if not mark.exists():
            await download(files, folder, refresh=refresh, client=client)
            with disk_errors():
                mark.touch()


async def upload(
    path: Path,
    url: str,
    *,
    on_bytes: OnBytes | None = None,
    refresh: Callable[[], Awaitable[str]] | None = None,
    client: httpx.AsyncClient | None = None,
) -> LocalFile:
    """Puts a file to a signed URL and returns its size and sha256. Repeating it is harmless.

    Args:
        on_bytes: called with the number of bytes as they go; a repeated attempt counts again from 0
            with the negative of what was sent.
        refresh: gives a fresh URL when the store says that the old one has ended.
    Raises:
        Fault: STORAGE_URL_INVALID, STORAGE_URL_EXPIRED, STORAGE_OBJECT_EXISTS,
            STORAGE_SIZE_MISMATCH, STORAGE_FULL, DEP_SERVICE_UNAVAILABLE.
    """
    local = await asyncio.to_thread(describe, path)
    count = on_bytes or _ignore
    async with _client(client) as http:
        with _lasting_failure("The object store did not take the file."):
            async for attempt in stamina.retry_context(
                on=_Again, attempts=MAX_ATTEMPTS, wait_max=MAX_WAIT_SECONDS, timeout=None
            ):
                with attempt:
                    try:
                        await _put(http, local, url, count)
                    except Fault as fault:
                        if refresh is None or fault.code is not FaultCode.STORAGE_URL_EXPIRED:
                            raise
                        url = await refresh()
                        raise _Again from fault
    return local


class _Download:
    """One file on its way down."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        file: RemoteFile,
        target: Path,
        on_bytes: OnBytes,
        refresh: Refresh | None,
    ) -> None:
        self._http = http
        self._file = file
        self._url = file.url
        self._target = target
        self._partial = target.with_name(target.name + _PARTIAL)
        self._on_bytes = on_bytes
        self._refresh = refresh
        self._renewals = 0
        # Where patience began last; None before the first attempt.
        self._furthest_bytes: int | None = None

    async def run(self) -> None:
        if await asyncio.to_thread(self._is_whole):
            self._on_bytes(self._file.size_bytes)
            return
        with disk_errors():
            self._target.parent.mkdir(parents=True, exist_ok=True)
        with _lasting_failure("The object store did not send the file."):
            is_settled = False
            while not is_settled:
                async for attempt in stamina.retry_context(
                    on=_Again, attempts=MAX_ATTEMPTS, wait_max=MAX_WAIT_SECONDS, timeout=None
                ):
                    with attempt:
                        is_settled = await self._attempt()

    async def _attempt(self) -> bool:
        """Whether the file is there; False when this brought it nearer, so that it goes on at once.

        Raises:
            _Again: it did not, and after a rest it may.
        """
        digest, have_bytes = await asyncio.to_thread(self._resume)
        if self._furthest_bytes is None:
            self._furthest_bytes = have_bytes
        try:
            if have_bytes < self._file.size_bytes or have_bytes == 0:
                await self._fetch(digest, have_bytes)
        except Fault as fault:
            if self._refresh is None or fault.code not in _ENDED:
                raise
            await self._renew(fault)
            raise _Again from fault
        except _Again:
            # Farther than ever: a store without ranges could start over for ever.
            arrived_bytes = await asyncio.to_thread(self._arrived_bytes)
            if arrived_bytes - self._furthest_bytes < PROGRESS_BYTES:
                raise
            self._furthest_bytes = arrived_bytes
            return False
        if digest.hexdigest() != self._file.sha256:
            self._partial.unlink()
            raise Fault(
                FaultCode.STORAGE_CHECKSUM_MISMATCH,
                "A file did not arrive as it was stored.",
                path=self._file.path,
                expected_sha256=self._file.sha256,
                actual_sha256=digest.hexdigest(),
            )
        with disk_errors():
            await asyncio.to_thread(settle, self._partial, self._target)
        return True

    async def _renew(self, refusal: Fault) -> None:
        assert self._refresh is not None
        if self._renewals == MAX_RENEWALS:
            raise Fault(
                FaultCode.STORAGE_URL_NOT_RENEWED,
                f"The store refuses URLs that were signed just now: {refusal.message}",
                path=self._file.path,
                cause=refusal.code.value,
            ) from refusal
        self._renewals += 1
        self._url = await self._refresh(self._file, self._url)

    async def _fetch(self, digest: "hashlib._Hash", have_bytes: int) -> None:
        # Ranges and digests are those of the stored bytes, so nobody may compress them on the way.
        headers = {"accept-encoding": "identity"}
        if have_bytes:
            headers["range"] = f"bytes={have_bytes}-"
        try:
            async with self._http.stream("GET", self._url, headers=headers) as response:
                _check(response)
                self._renewals = 0
                resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
                if have_bytes and not (resumed and _starts_at(response, have_bytes)):
                    self._partial.unlink()
                    raise _Again
                if not have_bytes:
                    self._partial.unlink(missing_ok=True)
                await self._receive(response, digest, have_bytes)
        except httpx.HTTPError as error:
            raise _Again from error

    async def _receive(
        self, response: httpx.Response, digest: "hashlib._Hash", have_bytes: int
    ) -> None:
        with disk_errors(), self._partial.open("ab") as out:
            async for chunk in response.aiter_bytes():
                have_bytes += len(chunk)
                if have_bytes > self._file.size_bytes:
                    break
                await asyncio.to_thread(_append, out, digest, chunk)
                self._on_bytes(len(chunk))
        if have_bytes > self._file.size_bytes:
            self._partial.unlink()
            raise Fault(
                FaultCode.STORAGE_CHECKSUM_MISMATCH,
                "A file is longer than it was when it was stored.",
                path=self._file.path,
                expected_bytes=self._file.size_bytes,
            )
        if have_bytes < self._file.size_bytes:
            raise _Again

    def _is_whole(self) -> bool:
        if not self._target.is_file() or self._target.stat().st_size != self._file.size_bytes:
            return False
        return describe(self._target).sha256 == self._file.sha256

    def _arrived_bytes(self) -> int:
        return self._partial.stat().st_size if self._partial.is_file() else 0

    def _resume(self) -> tuple["hashlib._Hash", int]:
        """Returns the digest and size of what an earlier attempt left; too much is thrown away."""
        digest = hashlib.sha256()
        if not self._partial.is_file():
            return digest, 0
        if self._partial.is_symlink() or self._partial.stat().st_size > self._file.size_bytes:
            self._partial.unlink()
            return digest, 0
        with self._partial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
            return digest, file.tell()


async def _put(http: httpx.AsyncClient, local: LocalFile, url: str, on_bytes: OnBytes) -> None:
    sent_bytes = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent_bytes
        with local.path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
                sent_bytes += len(chunk)
                on_bytes(len(chunk))

    headers = {
        "content-length": str(local.size_bytes),
        "content-type": "application/octet-stream",
    }
    try:
        _check(await http.put(url, content=body(), headers=headers))
    except (httpx.HTTPError, _Again) as error:
        on_bytes(-sent_bytes)
        raise _Again from error


def _check(response: httpx.Response) -> None:
    """Maps the store's answer; the gateway names the code of a refusal in `x-tunesmith-code`."""
    if response.is_success:
        return
    if response.status_code in _RETRY_STATUS:
        raise _Again
    named = response.headers.get("x-tunesmith-code", "")
    if named.startswith("STORAGE_") and named in FaultCode.__members__:
        raise Fault(FaultCode(named))
    match response.status_code:
        case 403:
            raise Fault(FaultCode.STORAGE_URL_EXPIRED)
        case 404:
            raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
        case 409 | 412:
            raise Fault(FaultCode.STORAGE_OBJECT_EXISTS)
        case 413 | 411:
            raise Fault(FaultCode.STORAGE_SIZE_MISMATCH)
        case 507:
            raise Fault(FaultCode.STORAGE_FULL)
        case status:
            raise Fault(
                FaultCode.STORAGE_URL_INVALID,
                f"The object store refused the transfer (HTTP {status}).",
                http_status=status,
            )


def _starts_at(response: httpx.Response, offset: int) -> bool:
    span: str = response.headers.get("content-range", "")
    return span.startswith(f"bytes {offset}-")


def _append(out: "_Writer", digest: "hashlib._Hash", chunk: bytes) -> None:
    out.write(chunk)
    digest.update(chunk)


class _Writer(Protocol):
    def write(self, data: bytes, /) -> int: ...


@contextmanager
def _lasting_failure(message: str) -> Iterator[None]:
    """Turns the last of many failed attempts into a code."""
    try:
        yield
    except _Again as error:
        raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, message) from error.__cause__


async def _all_or_first_fault(jobs: Sequence[Awaitable[None]]) -> None:
    """Runs jobs side by side; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(_wait(job))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _wait(job: Awaitable[None]) -> None:
    await job


@asynccontextmanager
async def _client(client: httpx.AsyncClient | None) -> AsyncIterator[httpx.AsyncClient]:
    """The caller's client, or one that follows no redirect and reads no proxy settings."""
    if client is not None:
        yield client
        return
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as own:
        yield own


def _ignore(_count: int) -> None:
    return None
