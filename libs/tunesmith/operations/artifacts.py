"""What can be done with what runs left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.api.artifact.v1 import artifact_pb2, artifact_service_pb2
from tunesmith.errors import NotFoundError, UnavailableError
from tunesmith.names import full_name, local_name
from tunesmith.operations.steps import PAGE_SIZE, call, pages
from tunesmith.rollback import LORA, MERGES, archive_names, write_rollback
from tunesmith.transfer import TRIES, Download, OnBytes, PartialFile, holds
from tunesmith.transport import Operation

ARTIFACT_SERVICE = "/tunesmith.api.artifact.v1.ArtifactService"


def list_artifacts(
    project: str, *, run: str, limit: int | None
) -> Operation[list[artifact_pb2.Artifact]]:
    """Hub entries, newest first; of one run where it is named."""
    request = artifact_service_pb2.ListArtifactsRequest(
        parent=f"projects/{project}",
        page_size=PAGE_SIZE,
        run=full_name(project, "runs", run) if run else "",
    )
    return (
        yield from pages(
            ARTIFACT_SERVICE,
            "ListArtifacts",
            request,
            artifact_service_pb2.ListArtifactsResponse,
            lambda page: page.artifacts,
            limit=limit,
        )
    )


def get_artifact(project: str, run: str) -> Operation[artifact_pb2.Artifact]:
    """The hub entry of a run, or the one of a full name.

    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND.
    """
    if "/artifacts/" in run:
        request = artifact_service_pb2.GetArtifactRequest(name=run)
        response = artifact_service_pb2.GetArtifactResponse
        return (yield from call(ARTIFACT_SERVICE, "GetArtifact", request, response)).artifact
    found = yield from list_artifacts(project, run=run, limit=1)
    if not found:
        raise NotFoundError(
            "ARTIFACT_NOT_FOUND", f"The run {run} has stored no artifact.", metadata={"run": run}
        )
    return found[0]


def pull_artifacts(
    project: str,
    run: str,
    folder: Path,
    *,
    kinds: Sequence[artifact_pb2.ArtifactKind],
    quantization: str,
    on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None,
) -> Operation[list[Path]]:
    """Download the files of a run into a folder; files that are there already are not sent again.

    Args:
        run: a run, or the full name of a hub entry.
        kinds: only these; empty for all.
        quantization: of the GGUF bundles only this one; empty for all.
        on_file: called before each file; what it returns hears of the bytes.
    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND when the run has stored nothing of the kind.
    """
    artifact = yield from get_artifact(project, run)
    chosen = [file for file in artifact.files if not kinds or file.kind in kinds]
    if quantization:
        chosen = [file for file in chosen if file.quantization in ("", quantization)]
        if not any(file.quantization for file in chosen):
            stored = ", ".join(file.quantization for file in artifact.files if file.quantization)
            raise NotFoundError(
                "ARTIFACT_NOT_FOUND",
                f"{artifact.name} has no GGUF of type {quantization}; it has {stored or 'none'}.",
                metadata={"artifact": artifact.name, "quantization": quantization},
            )
    paths = []
    for file in chosen:
        path = folder / local_name(file)
        if not holds(path, size_bytes=file.size_bytes, sha256=file.sha256):
            on_bytes = on_file(file) if on_file else None
            yield from _pull_file(artifact.name, file, path, on_bytes=on_bytes)
        paths.append(path)
    return paths


def rollback_adapter(
    project: str,
    run: str,
    number: int,
    folder: Path,
    *,
    on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None,
) -> Operation[Path]:
    """The archive of the adapter as it was after run `number`, from 1, of a multi-run.

    The two archives that it is made of stay in the folder, as `pull` leaves them there.

    Raises:
        NotFoundError: ARTIFACT_NOT_FOUND when the run was no multi-run, or kept no such adapter.
        ConflictError: STORAGE_CHECKSUM_MISMATCH when an archive is not what it says.
        LimitError: STORAGE_FULL when the folder cannot be written.
    """
    adapter, merges = archive_names((yield from get_artifact(project, run)))
    yield from pull_artifacts(
        project, run, folder, kinds=(LORA, MERGES), quantization="", on_file=on_file
    )
    return write_rollback(folder / adapter, folder / merges, number)


def delete_artifact(project: str, artifact: str, *, request_id: str) -> Operation[None]:
    """Delete a hub entry."""
    request = artifact_service_pb2.DeleteArtifactRequest(
        request_id=request_id, name=full_name(project, "artifacts", artifact)
    )
    response = artifact_service_pb2.DeleteArtifactResponse
    yield from call(ARTIFACT_SERVICE, "DeleteArtifact", request, response)


def _pull_file(
    artifact: str,
    file: artifact_pb2.ArtifactFile,
    path: Path,
    *,
    on_bytes: OnBytes | None,
) -> Operation[None]:
    """Download one file; a URL that has run out is replaced by a fresh one."""
    partial = PartialFile(path, size_bytes=file.size_bytes, sha256=file.sha256)
    request = artifact_service_pb2.CreateDownloadRequest(
        name=artifact, kind=file.kind, quantization=file.quantization
    )
    reason = ""
    for number in range(TRIES):
        if partial.is_whole:
            break
        response = yield from call(
            ARTIFACT_SERVICE,
            "CreateDownload",
            request,
            artifact_service_pb2.CreateDownloadResponse,
        )
        reason = yield Download(
            url=response.url, partial=partial, on_bytes=on_bytes, try_number=number
        )
    if not partial.is_whole:
        raise UnavailableError(
            "DEP_SERVICE_UNAVAILABLE", f"The download of {path.name} broke off: {reason}."
        )
    partial.finish()
