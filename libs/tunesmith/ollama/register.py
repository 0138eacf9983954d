"""Registers the artifacts of a run with Ollama: the merged model, or the adapter on its base.

The downloaded files stay in place; nothing is unpacked, and memory holds only one piece of a file
or one matrix of an adapter.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tunesmith.errors import InputError, LimitError
from tunesmith.ollama import adapter
from tunesmith.ollama.modelfile import CODE, DOWNLOAD_AGAIN, MAX_CHARS, parse
from tunesmith.ollama.server import Blob, OnStatus, Server, checked_name
from tunesmith.transfer import CHUNK_BYTES, OnBytes

MODELFILE: Final = "Modelfile"
CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_FILE: Final = "adapter.gguf"

# Called before a file is read or sent, with the action, its name and its size; returns a callback
# for its bytes.
OnFile = Callable[[str, str, int], OnBytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A model that Ollama has; `was_sent` is False when it had the file already."""

    name: str
    url: str
    was_sent: bool


def register_bundle(
    bundle: Path,
    name: str,
    server: Server,
    *,
    on_file: OnFile | None = None,
    on_status: OnStatus | None = None,
) -> Registered:
    """Creates the model that `ollama create -f Modelfile` creates from an unpacked bundle.

    Args:
        bundle: the downloaded ZIP.
    Raises:
        TunesmithError: DEP_OLLAMA_REGISTRATION_FAILED.
    """
    checked_name(name)
    with _archive(bundle) as archive:
        modelfile = parse(_text(archive, MODELFILE))
        model = modelfile.source.removeprefix("./")
        if modelfile.adapter or model == MODELFILE or model not in archive.namelist():
            raise _refused(f"the Modelfile of {bundle.name} names no model inside it")
        blob = _member_blob(archive, model, on_file)
        was_sent = _push(server, blob, on_file)
        server.create(
            {"model": name, "files": {model: blob.digest}, **modelfile.create_fields()}, on_status
        )
    return Registered(name=name, url=server.url, was_sent=was_sent)


def register_adapter(
    archive_path: Path,
    name: str,
    base: str,
    server: Server,
    *,
    on_file: OnFile | None = None,
    on_status: OnStatus | None = None,
) -> Registered:
    """Creates a model from a base that Ollama has or fetches, with the adapter on top.

    Template, parameters and stop words are the base's.

    Args:
        archive_path: the downloaded ZIP of the adapter.
        base: name of the base model in Ollama.
    Raises:
        TunesmithError: DEP_OLLAMA_REGISTRATION_FAILED.
    """
    checked_name(name)
    checked_name(base)
    # Check this before a base is pulled.
    with _archive(archive_path) as archive:
        settings = adapter.plain_settings(_settings(archive))
    facts = server.show(base)
    if facts is None:
        server.pull(base, on_status)
        facts = server.show(base) or {}
    fits = adapter.Base.of(facts)
    with (
        _archive(archive_path) as archive,
        tempfile.TemporaryDirectory(dir=archive_path.parent, prefix=".adapter-") as folder,
    ):
        path = Path(folder) / ADAPTER_FILE
        try:
            with archive.open(_member(archive, WEIGHTS)) as weights, path.open("wb") as target:
                size_bytes = archive.getinfo(WEIGHTS).file_size
                adapter.convert(settings, weights, size_bytes, fits, target)
        except OSError as error:
            raise LimitError(
                "STORAGE_FULL", f"{path} cannot be written: {error.strerror}."
            ) from None
        blob = _file_blob(path)
        was_sent = _push(server, blob, on_file)
        server.create(
            {"model": name, "from": base, "adapters": {blob.file_name: blob.digest}}, on_status
        )
    return Registered(name=name, url=server.url, was_sent=was_sent)


def _push(server: Server, blob: Blob, on_file: OnFile | None) -> bool:
    on_bytes = on_file("send", blob.file_name, blob.size_bytes) if on_file else None
    return server.push(blob, on_bytes)


def _member_blob(archive: zipfile.ZipFile, name: str, on_file: OnFile | None) -> Blob:
    """A file inside the archive; its bytes are checked against the archive's checksum as read."""
    info = archive.getinfo(name)
    on_bytes = on_file("read", name, info.file_size) if on_file else None

    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with archive.open(info) as file:
            yield file

    with opened() as file:
        digest = _sha256(file, on_bytes)
    return Blob(file_name=name, sha256=digest, size_bytes=info.file_size, open=opened)


def _file_blob(path: Path) -> Blob:
    with path.open("rb") as file:
        digest = _sha256(file, None)
    return Blob(
        file_name=path.name,
        sha256=digest,
        size_bytes=path.stat().st_size,
        open=lambda: path.open("rb"),
    )


def _sha256(file: IO[bytes], on_bytes: OnBytes | None) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        if on_bytes:
            on_bytes(len(chunk))
    return digest.hexdigest()


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _sound(path.name), zipfile.ZipFile(path) as archive:
        yield archive


@contextmanager
def _sound(name: str) -> Iterator[None]:
    """Turns the exceptions of a damaged archive into our fault."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise _refused(f"{name} is damaged") from None


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        raise _refused(f"{archive.filename} holds no {name}") from None


def _settings(archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        found = json.loads(_text(archive, CONFIG), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused(f"{CONFIG} cannot be read")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a duplicate key is refused, as readers would use different values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _refused(f"{CONFIG} names a setting twice")
    return found


def _text(archive: zipfile.ZipFile, name: str) -> str:
    info = _member(archive, name)
    if info.file_size > MAX_CHARS:
        raise _refused(f"{name} is longer than {MAX_CHARS} bytes")
    try:
        return archive.read(info).decode("utf-8")
    except UnicodeDecodeError:
        raise _refused(f"{name} is not text") from None


def _refused(reason: str) -> InputError:
    return InputError(
        CODE,
        f"The model could not be registered with Ollama: {reason}.",
        remedy=DOWNLOAD_AGAIN,
    )
