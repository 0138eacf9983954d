"""Artifacts: hub entries, one a run, with at most one file of a kind and quantisation."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from hub.domain.labels import label, sha256_text
from lexicon.faults import Fault, FaultCode
from lexicon.names import ArtifactName, ExportName, RunName

# `Q4_K_M`, `IQ4_XS`, `F16` and their like.
_QUANTIZATION: Final = re.compile(r"[A-Z0-9_]{0,16}", re.ASCII)
_MAX_ENTRIES: Final = 1000


class ArtifactKind(StrEnum):
    """What a stored file is."""

    LORA_ADAPTER = "lora_adapter"
    GGUF_BUNDLE = "gguf_bundle"
    MERGE_HISTORY = "merge_history"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One downloadable file; `create_time` is None before it is stored."""

    kind: ArtifactKind
    quantization: str
    file_name: str
    size_bytes: int
    sha256: str
    object_key: str
    entries: tuple[str, ...]
    create_time: datetime | None = None

    def is_same_place(self, other: "ArtifactFile") -> bool:
        """Whether one of them takes the place of the other in an artifact."""
        return (self.kind, self.quantization) == (other.kind, other.quantization)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A hub entry: the stored files of one run."""

    name: ArtifactName
    run: RunName
    base_model: str
    files: tuple[ArtifactFile, ...]
    create_time: datetime

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def artifact_name(run: RunName) -> ArtifactName:
    """The hub entry of a run has the run's own id: there is one, and it needs no lookup."""
    return ArtifactName(project=run.project, artifact=run.run)


def output_folder(run: RunName) -> str:
    """Where a run's workers store what they make: artifacts, loose adapter files, checkpoints."""
    return f"runs/{run.run}"


def export_folder(export: ExportName) -> str:
    """Where the workers of an export store what they make.

    It is outside of the run's folder; unregistered files in it are deleted by a sweep of its own.
    """
    return f"exports/{export.export}"


def leftovers(
    stored: Iterable[str], artifact: Artifact | None, *, adapter: Collection[str]
) -> list[str]:
    """The objects of a run that are not needed after its end.

    A hub entry needs its files, and the loose files of its adapter for a later export (A5). A run
    without an entry needs nothing.

    Args:
        stored: keys of the run's objects, or some of them.
        adapter: keys of the loose files of its adapter.
    """
    needed: set[str] = set()
    if artifact is not None:
        needed = {file.object_key for file in artifact.files} | set(adapter)
    return [key for key in stored if key not in needed]


def check_own(keys: Iterable[str], run: RunName, *, field: str) -> None:
    """Refuses keys outside of a run's folder.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    folder = f"{output_folder(run)}/"
    if not all(key.startswith(folder) for key in keys):
        raise _invalid(field, "must be objects of the run")


def check_file(file: ArtifactFile) -> ArtifactFile:
    """Returns a file whose description is well formed.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    sha256_text(file.sha256, field="file.sha256")
    label(file.file_name, field="file.file_name", default="")
    if not file.file_name or "/" in file.file_name or "\\" in file.file_name:
        raise _invalid("file.file_name", "must be a name without a folder")
    if file.size_bytes <= 0:
        raise _invalid("file.size_bytes", "must be more than 0")
    if not _QUANTIZATION.fullmatch(file.quantization):
        raise _invalid("file.quantization", "must be the name of a GGUF quantisation or empty")
    if bool(file.quantization) != (file.kind is ArtifactKind.GGUF_BUNDLE):
        raise _invalid("file.quantization", "is for GGUF bundles, and required there")
    if len(file.entries) > _MAX_ENTRIES:
        raise _invalid("file.entries", f"must have at most {_MAX_ENTRIES} names")
    for entry in file.entries:
        label(entry, field="file.entries", default="")
    return file


def check_said(file_name: str, *, said: tuple[int, str], stored: tuple[int, str] | None) -> None:
    """Compares a worker's report of a stored file with the object in the store.

    Args:
        said: size in bytes and sha256.
        stored: the same of the object; None when there is none.
    Raises:
        Fault: STORAGE_OBJECT_NOT_FOUND, STORAGE_CHECKSUM_MISMATCH.
    """
    if stored is None:
        raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND, file=file_name)
    if said != stored:
        raise Fault(
            FaultCode.STORAGE_CHECKSUM_MISMATCH,
            f"{file_name} is stored with {stored[0]} bytes and another digest than was said.",
            expected_sha256=said[1],
            actual_sha256=stored[1],
        )


def choose(artifact: Artifact, kind: ArtifactKind, *, quantization: str) -> ArtifactFile:
    """Returns the file that a download means; without a quantisation the newest of its kind.

    Raises:
        Fault: ARTIFACT_NOT_FOUND, naming what there is.
    """
    of_kind = [file for file in artifact.files if file.kind is kind]
    fitting = [file for file in of_kind if quantization in {"", file.quantization}]
    if not fitting:
        there_is = ", ".join(file.quantization or str(file.kind) for file in artifact.files)
        raise Fault(
            FaultCode.ARTIFACT_NOT_FOUND,
            f"The artifact has no such file; it has {there_is}.",
            artifact=str(artifact.name),
        )
    return max(fitting, key=lambda file: file.create_time or artifact.create_time)


def _invalid(field: str, rule: str) -> Fault:
    return Fault(FaultCode.INPUT_FIELD_INVALID, f"{field} {rule}.", field=field)
