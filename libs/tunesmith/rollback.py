"""Rollback: the adapter as it was after one run of a multi-run.

The merge history of a multi-run holds the adapter's weights after each merge. The adapter's own
archive with those weights is the adapter after that run, with the same six files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.errors import ConflictError, NotFoundError
from tunesmith.names import local_name
from tunesmith.transfer import CHUNK_BYTES, unwritable

LORA = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
MERGES = artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY
HISTORY_NAME = "history.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CARD_NAME = "README.md"
# A hundred runs take less than a hundred KiB.
HISTORY_BYTES_MAX = 1 << 20


def archive_names(artifact: artifact_pb2.Artifact) -> tuple[str, str]:
    """Local names of the two archives of a multi-run: its adapter, its merge history.

    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND when the run was no multi-run.
    """
    names = {file.kind: local_name(file) for file in artifact.files if file.kind in (LORA, MERGES)}
    if set(names) != {LORA, MERGES}:
        raise NotFoundError(
            "ARTIFACT_NOT_FOUND",
            f"{artifact.name} has no merge history: its run was no multi-run.",
            metadata={"artifact": artifact.name},
        )
    return names[LORA], names[MERGES]


def write_rollback(whole: Path, merges: Path, number: int) -> Path:
    """Write the adapter `whole` as it was after run `number`, from 1, beside it.

    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND when no adapter of that run was kept.
        ConflictError: STORAGE_CHECKSUM_MISMATCH when an archive does not match its digests.
        LimitError: STORAGE_FULL when the folder cannot be written.
    """
    target = whole.with_name(f"{whole.stem}-run-{number:03d}.zip")
    try:
        _write(whole, merges, target, number)
    except OSError as error:
        raise unwritable(target, error) from None
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise _broken(merges.name, str(error)) from None
    return target


def _write(whole: Path, merges: Path, target: Path, number: int) -> None:
    """Write the archive `whole` again with the weights of one run in it."""
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(whole) as lora, zipfile.ZipFile(merges) as history:
        records = _records(history)
        sha256 = _sha256_of(records, number, where=merges.name)
        try:
            with zipfile.ZipFile(partial, "w") as archive:
                for entry in lora.infolist():
                    with archive.open(_plain(entry), "w", force_zip64=True) as sink:
                        if entry.filename == WEIGHTS_NAME:
                            place = f"run-{number:03d}/{WEIGHTS_NAME}"
                            with history.open(place) as source:
                                _copy(source, sink, sha256=sha256, name=place)
                            continue
                        with lora.open(entry) as source:
                            shutil.copyfileobj(source, sink, CHUNK_BYTES)
                        if entry.filename == CARD_NAME:
                            text = (
                                f"\nThese are the weights after run {number} of {len(records)}.\n"
                            )
                            sink.write(text.encode())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _records(history: zipfile.ZipFile) -> list[Any]:
    """The runs in a merge history."""
    with history.open(HISTORY_NAME) as file:
        document = json.loads(file.read(HISTORY_BYTES_MAX))
    return list(document["runs"])


def _sha256_of(runs: list[Any], number: int, *, where: str) -> str:
    kept = {int(run["number"]): str(run["sha256"]) for run in runs if run["sha256"]}
    if number not in kept:
        known = ", ".join(map(str, sorted(kept))) or "none"
        raise NotFoundError(
            "ARTIFACT_NOT_FOUND",
            f"{where} has no adapter of run {number}; it has those of {known}. A run that was not "
            "merged has changed nothing: take the one before it.",
            metadata={"run_number": str(number)},
        )
    return kept[number]


def _plain(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry with its name, time and mode; sizes and checksums are those of the new content."""
    fresh = zipfile.ZipInfo(entry.filename, date_time=entry.date_time)
    fresh.external_attr, fresh.compress_type = entry.external_attr, entry.compress_type
    return fresh


def _copy(source: IO[bytes], sink: IO[bytes], *, sha256: str, name: str) -> None:
    total = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        total.update(chunk)
        sink.write(chunk)
    if total.hexdigest() != sha256:
        raise _broken(name, "it does not match its digest")


def _broken(name: str, why: str) -> ConflictError:
    return ConflictError(
        "STORAGE_CHECKSUM_MISMATCH", f"{name} cannot be used: {why}.", metadata={"file": name}
    )
