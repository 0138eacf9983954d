"""Transfers of files: PUT and GET of signed URLs, outside gRPC and without a token."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx

from tunesmith.credentials import is_loopback
from tunesmith.errors import InputError, LimitError, TunesmithError, UnavailableError

CONNECT_SECONDS = 10.0
# A store answers within this, also when it hashes a large file after its last byte.
IDLE_SECONDS = 120.0
TRIES = 5
CHUNK_BYTES = 1 << 20
# The header with the code of a refusal by the gateway.
CODE_HEADER = "x-tunesmith-code"

OnBytes: TypeAlias = Callable[[int], None]


class PartialFile:
    """A download in progress: bytes go to `.partial`, which is renamed once they are verified."""

    def __init__(self, path: Path, *, size_bytes: int, sha256: str) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.sha256 = sha256
        self._partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from None
        self._hash = hashlib.sha256()
        self.received_bytes = 0
        if self._partial.exists():
            with self._partial.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    self._count(chunk)
            if self.received_bytes > size_bytes:
                self.restart()

    @property
    def range_header(self) -> dict[str, str]:
        """The header that requests the missing bytes; empty for a download from the start."""
        return {"Range": f"bytes={self.received_bytes}-"} if self.received_bytes else {}

    def begin(self, status: int) -> bool:
        """Whether an answer with this HTTP status brings the bytes that are missing."""
        if status == httpx.codes.OK:
            # The server sends everything, although only a part was requested.
            self.restart()
            return True
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.restart()
        return status == httpx.codes.PARTIAL_CONTENT

    @property
    def is_whole(self) -> bool:
        return self.received_bytes >= self.size_bytes

    def restart(self) -> None:
        """Discard the bytes so far."""
        self._partial.unlink(missing_ok=True)
        self._hash = hashlib.sha256()
        self.received_bytes = 0

    def append(self, chunk: bytes) -> None:
        """Add bytes to the file.

        Raises:
            LimitError: STORAGE_FULL when the disk has no room, or refuses for another reason.
        """
        try:
            with self._partial.open("ab") as file:
                file.write(chunk)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._count(chunk)

    def finish(self) -> Path:
        """Check size and sha256 and give the file its name.

        Raises:
            UnavailableError: STORAGE_CHECKSUM_MISMATCH; the bytes are deleted.
        """
        if not self._partial.exists() and self.size_bytes == 0:
            self._partial.touch()
        found = self._hash.hexdigest()
        if self.received_bytes != self.size_bytes or found != self.sha256:
            size = self.received_bytes
            self.restart()
            raise UnavailableError(
                "STORAGE_CHECKSUM_MISMATCH",
                f"The download of {self.path.name} has {size} bytes with sha256 {found}; "
                f"{self.size_bytes} bytes with {self.sha256} were expected.",
            )
        self._partial.replace(self.path)
        return self.path

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.received_bytes += len(chunk)


def timeouts() -> httpx.Timeout:
    """Deadlines of a transfer: connecting is quick, and no pause is longer than IDLE_SECONDS."""
    return httpx.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS)


def trust(ca_file: str) -> ssl.SSLContext:
    """The authorities that a transfer trusts: those of a file, or the system's."""
    return ssl.create_default_context(cafile=ca_file or None)


def uses_proxy(url: str) -> bool:
    """Whether the proxies of the environment apply: never on this machine."""
    parts = urlsplit(url)
    return not is_loopback(f"{parts.hostname}:{parts.port or 80}")


def length_header(path: Path) -> dict[str, str]:
    """The length of a file that is sent in pieces."""
    return {"Content-Length": str(path.stat().st_size)}


def chunks(path: Path, on_bytes: OnBytes | None) -> Iterator[bytes]:
    """The bytes of a file in pieces."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            if on_bytes:
                on_bytes(len(chunk))


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file.

    Raises:
        InputError: DATASET_FILE_INVALID when it cannot be read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    try:
        for chunk in chunks(path, None):
            digest.update(chunk)
            size_bytes += len(chunk)
    except OSError as error:
        raise InputError(
            "DATASET_FILE_INVALID",
            f"The file {path} cannot be read: {error.strerror}.",
            remedy="Give the path of a file that you may read.",
            metadata={"path": str(path)},
        ) from None
    return size_bytes, digest.hexdigest()


def holds(path: Path, *, size_bytes: int, sha256: str) -> bool:
    """Whether a file exists and has this content."""
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    return size_and_sha256(path)[1] == sha256


def unwritable(path: Path, error: OSError) -> LimitError:
    """The fault of a local file that cannot be written."""
    return LimitError(
        "STORAGE_FULL",
        f"{path} cannot be written: {error.strerror}.",
        remedy="Free space, or give another folder.",
        metadata={"path": str(path)},
    )


def may_pass(status: int) -> bool:
    """Whether a PUT answered like this may succeed when it is tried again soon."""
    return (
        status >= httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.INSUFFICIENT_STORAGE
    )


def upload_refused(status: int, headers: Mapping[str, str]) -> TunesmithError:
    """The exception for a PUT that was answered with a permanent error."""
    kind = LimitError if status == httpx.codes.INSUFFICIENT_STORAGE else InputError
    return kind(
        headers.get(CODE_HEADER, "STORAGE_URL_INVALID"),
        f"The upload was refused with HTTP {status}.",
        metadata={"http_status": str(status)},
    )
