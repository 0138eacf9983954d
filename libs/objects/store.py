"""The object store: write-once objects, each with its size and sha256, in a folder or on S3.

An object is two records: the bytes under a name used once (`{key}/_{nonce}`), and a manifest
(`{key}/_manifest.json`) that names them with size and sha256. The manifest is written last and only
if there is none (a conditional put, atomic on both stores), so an object is there whole or not at
all, two writers of one key cannot mix, and a URL that is still alive cannot replace bytes that were
already checked. Deleting leaves a marker in the manifest's place: a key is never used twice.
"""

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from lexicon.faults import Fault, FaultCode
from objects.keys import check_key

# 1 MiB: large enough that the event loop turns rarely, small enough that many streams fit in
# memory.
CHUNK_BYTES: Final = 1 << 20

# What nobody refers to is swept after a week, the longest life that a signed URL may have.
SWEEP_AGE: Final = timedelta(days=7)

_MANIFEST: Final = "_manifest.json"
_NO_SPACE: Final = tuple(f"os error {number}" for number in (errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What is known of a stored object."""

    key: str
    size_bytes: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The record that makes an object exist; `data` is empty once it was deleted."""

    data: str
    size_bytes: int
    sha256: str

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size_bytes=self.size_bytes, sha256=self.sha256)


_DELETED: Final = _Manifest(data="", size_bytes=0, sha256="")


def open_store(url: str) -> "ObjectStore":
    """Opens the store at `file:///absolute/folder` or `s3://bucket/prefix`.

    S3 takes its endpoint and credentials from the standard AWS_* variables.

    Raises:
        Fault: CONFIG_INVALID when the URL is neither.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file" if parts.path.startswith("/") and not parts.netloc:
            folder = Path(unquote(parts.path))
            return ObjectStore(LocalStore(folder, mkdir=True), folder=folder)
        case "s3" if parts.netloc:
            return ObjectStore(S3Store(parts.netloc, prefix=parts.path.strip("/") or None))
        case _:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                "The object store's URL must be file:///absolute/folder or s3://bucket/prefix.",
            )


class ObjectStore:
    """Write-once objects under checked keys. Safe to share between tasks and processes."""

    def __init__(self, backend: Any, *, folder: Path | None = None) -> None:
        self._backend = backend
        self._folder = folder

    async def put(
        self,
        key: str,
        source: AsyncIterator[bytes] | Path,
        *,
        size_limit: int,
        exact_bytes: int | None = None,
    ) -> ObjectInfo:
        """Stores an object and returns its size and sha256; the same bytes again change nothing.

        Args:
            size_limit: most bytes that are taken.
            exact_bytes: when given, anything else is refused and nothing is stored.
        Raises:
            Fault: STORAGE_SIZE_MISMATCH, STORAGE_OBJECT_EXISTS when the key holds or held other
                bytes, STORAGE_FULL, STORAGE_KEY_INVALID, DEP_SERVICE_UNAVAILABLE.
        """
        data = f"{check_key(key)}/_{secrets.token_hex(16)}"
        chunks = _file_chunks(source) if isinstance(source, Path) else source
        meter = _Meter(size_limit=size_limit, exact_bytes=exact_bytes)
        try:
            await obstore.put_async(self._backend, data, meter.measure(chunks))
        except (BaseError, OSError) as error:
            raise _store_fault(error) from error
        manifest = _Manifest(data=data, size_bytes=meter.size_bytes, sha256=meter.sha256)
        try:
            await self._write_manifest(key, manifest, replace=False)
        except AlreadyExistsError:
            await self._remove(data)
            return await self._reconcile(key, manifest)
        return manifest.info(key)

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Opens an object and returns its bytes in pieces, from `start` up to but without `end`.

        Raises:
            Fault: STORAGE_OBJECT_NOT_FOUND, STORAGE_KEY_INVALID, DEP_SERVICE_UNAVAILABLE.
        """
        manifest = await self._manifest(key)
        if manifest is None:
            raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
        end = manifest.size_bytes if end is None else min(end, manifest.size_bytes)
        if start >= end:
            return _no_bytes()
        try:
            result = await obstore.get_async(
                self._backend, manifest.data, options={"range": (start, end)}
            )
        except (BaseError, OSError) as error:
            raise _store_fault(error) from error
        return _pieces(result)

    async def local_path(self, key: str) -> Path | None:
        """Where an object lies on this machine's disk, to be read only; None when it does not.

        Raises:
            Fault: STORAGE_OBJECT_NOT_FOUND, STORAGE_KEY_INVALID.
        """
        manifest = await self._manifest(key)
        if manifest is None:
            raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
        return None if self._folder is None else self._folder / manifest.data

    async def head(self, key: str) -> ObjectInfo | None:
        """Returns what is known of an object, or None when there is none."""
        manifest = await self._manifest(key)
        return manifest.info(key) if manifest else None

    async def delete(self, key: str) -> None:
        """Removes an object for good; its key stays used up. Nothing happens without one."""
        manifest = await self._manifest(key)
        if manifest is None:
            return
        try:
            await self._write_manifest(key, _DELETED, replace=True)
        except Fault as fault:
            if fault.code is not FaultCode.STORAGE_FULL:
                raise
            # A full disk has no room for the marker either: the bytes make room for it.
            await self._remove(manifest.data)
            await self._write_manifest(key, _DELETED, replace=True)
        await self._remove(manifest.data)

    async def keys(self, folder: str) -> list[str]:
        """The keys of the objects below a folder of keys, without those of deleted ones."""
        found = []
        async for page in obstore.list(self._backend, prefix=check_key(folder)):
            for record in page:
                key, _, leaf = record["path"].rpartition("/")
                if leaf == _MANIFEST and await self._manifest(key) is not None:
                    found.append(key)
        return found

    async def sweep(self, *, now: datetime) -> int:
        """Removes what nobody refers to and is a week old, and returns how many records.

        That is bytes that no manifest names, left by writers that died between the two records, and
        markers of deleted keys.
        """
        removed = 0
        async for page in obstore.list(self._backend):
            for record in page:
                if now - record["last_modified"] < SWEEP_AGE:
                    continue
                path: str = record["path"]
                key, _, leaf = path.rpartition("/")
                manifest = await self._read_manifest(key)
                is_marker = leaf == _MANIFEST and manifest == _DELETED
                is_orphan = leaf != _MANIFEST and (manifest is None or manifest.data != path)
                if is_marker or is_orphan:
                    await self._remove(path)
                    removed += 1
        return removed

    async def _reconcile(self, key: str, mine: _Manifest) -> ObjectInfo:
        """Answers a put on a used key: fine for equal bytes, refused otherwise."""
        stored = await self._read_manifest(key)
        if stored is None or stored.sha256 != mine.sha256 or not stored.data:
            raise Fault(FaultCode.STORAGE_OBJECT_EXISTS)
        return stored.info(key)

    async def _manifest(self, key: str) -> _Manifest | None:
        manifest = await self._read_manifest(check_key(key))
        return manifest if manifest and manifest.data else None

    async def _read_manifest(self, key: str) -> _Manifest | None:
        try:
            result = await obstore.get_async(self._backend, f"{key}/{_MANIFEST}")
            return msgspec.json.decode(bytes(await result.bytes_async()), type=_Manifest)
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise _store_fault(error) from error

    async def _write_manifest(self, key: str, manifest: _Manifest, *, replace: bool) -> None:
        mode: Literal["overwrite", "create"] = "overwrite" if replace else "create"
        try:
            await obstore.put_async(
                self._backend, f"{key}/{_MANIFEST}", msgspec.json.encode(manifest), mode=mode
            )
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise _store_fault(error) from error

    async def _remove(self, path: str) -> None:
        try:
            await obstore.delete_async(self._backend, path)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise _store_fault(error) from error


class _Meter:
    """Counts and hashes bytes on their way and holds them to their bounds."""

    def __init__(self, *, size_limit: int, exact_bytes: int | None) -> None:
        self._limit = size_limit if exact_bytes is None else min(size_limit, exact_bytes)
        self._exact_bytes = exact_bytes
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def measure(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.size_bytes += len(chunk)
            if self.size_bytes > self._limit:
                raise Fault(
                    FaultCode.STORAGE_SIZE_MISMATCH,
                    f"More than the {self._limit} bytes that are allowed were sent.",
                    limit_bytes=self._limit,
                )
            self._digest.update(chunk)
            if chunk:
                yield chunk
        if self._exact_bytes is not None and self.size_bytes != self._exact_bytes:
            raise Fault(
                FaultCode.STORAGE_SIZE_MISMATCH,
                f"{self.size_bytes} bytes were sent where {self._exact_bytes} were announced.",
                size_bytes=self.size_bytes,
                expected_bytes=self._exact_bytes,
            )


async def _file_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _pieces(result: Any) -> AsyncIterator[bytes]:
    try:
        async for piece in result.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(piece)
    except (BaseError, OSError) as error:
        raise _store_fault(error) from error


async def _no_bytes() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


def _store_fault(error: Exception) -> Fault:
    """Maps a driver's error: absence, no space, and else a store that does not answer."""
    if isinstance(error, FileNotFoundError):
        return Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
    text = str(error)
    if any(mark in text for mark in _NO_SPACE) or getattr(error, "errno", None) == errno.ENOSPC:
        return Fault(FaultCode.STORAGE_FULL)
    return Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, "The object store did not answer.")
