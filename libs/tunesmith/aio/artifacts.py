"""Artifacts: hub entries with the files of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.aio.connection import Connection
from tunesmith.api.artifact.v1 import artifact_pb2, artifact_service_pb2
from tunesmith.errors import NotFoundError, UnavailableError
from tunesmith.names import full_name, local_name, new_request_id
from tunesmith.rollback import LORA, MERGES, archive_names, write_rollback
from tunesmith.transfer import TRIES, OnBytes, PartialFile, holds


class Artifacts:
    """Hub entries with the files of runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._project = connection.credentials.project

    async def list(
        self, *, run: str = "", limit: int | None = None
    ) -> Sequence[artifact_pb2.Artifact]:
        """Hub entries, newest first; of one run where it is named."""
        return await self._connection.pages(
            artifact_service_pb2.ListArtifactsRequest(
                parent=f"projects/{self._project}",
                run=full_name(self._project, "runs", run) if run else "",
            ),
            artifact_service_pb2.ListArtifactsResponse,
            lambda page: page.artifacts,
            limit=limit,
        )

    async def get(self, run: str) -> artifact_pb2.Artifact:
        """The hub entry of a run, or the one of a full name.

        Raises:
            NotFoundError: ARTIFACT_NOT_FOUND.
        """
        if "/artifacts/" in run:
            request = artifact_service_pb2.GetArtifactRequest(name=run)
            answer = await self._connection.call(request, artifact_service_pb2.GetArtifactResponse)
            return answer.artifact
        found = await self.list(run=run, limit=1)
        if not found:
            raise NotFoundError(
                "ARTIFACT_NOT_FOUND",
                f"The run {run} has stored no artifact.",
                metadata={"run": run},
            )
        return found[0]

    async def pull(
        self,
        run: str,
        folder: Path | str = ".",
        *,
        kinds: Sequence[artifact_pb2.ArtifactKind] = (),
        quantization: str = "",
        on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None = None,
    ) -> Sequence[Path]:
        """Download the files of a run, checked by sha256; an interrupted download is resumed.

        Args:
            kinds: only these; empty for all.
            quantization: of the GGUF bundles only this one; empty for all.
            on_file: called before each file; returns a callback for its bytes.
        Raises:
            NotFoundError: ARTIFACT_NOT_FOUND when the run has stored nothing of the kind.
        """
        artifact = await self.get(run)
        paths = []
        for file in _chosen(artifact, kinds=kinds, quantization=quantization):
            path = Path(folder) / local_name(file)
            if not holds(path, size_bytes=file.size_bytes, sha256=file.sha256):
                on_bytes = on_file(file) if on_file else None
                await self._pull_file(artifact.name, file, path, on_bytes=on_bytes)
            paths.append(path)
        return paths

    async def rollback(
        self,
        run: str,
        number: int,
        folder: Path | str = ".",
        *,
        on_file: Callable[[artifact_pb2.ArtifactFile], OnBytes | None] | None = None,
    ) -> Path:
        """The archive of the adapter as it was after run `number`, from 1, of a multi-run.

        It holds the same six files as the adapter's own. The two source archives are kept beside
        it, so that another run needs no download.

        Raises:
            NotFoundError: ARTIFACT_NOT_FOUND when the run was no multi-run, or has no such adapter.
            ConflictError: STORAGE_CHECKSUM_MISMATCH when an archive does not match its digests.
            LimitError: STORAGE_FULL when the folder cannot be written.
        """
        adapter, merges = archive_names(await self.get(run))
        await self.pull(run, folder, kinds=(LORA, MERGES), on_file=on_file)
        return write_rollback(Path(folder) / adapter, Path(folder) / merges, number)

    async def delete(self, artifact: str, *, request_id: str = "") -> None:
        """Delete a hub entry with its files."""
        request = artifact_service_pb2.DeleteArtifactRequest(
            request_id=request_id or new_request_id(),
            name=full_name(self._project, "artifacts", artifact),
        )
        await self._connection.call(request, artifact_service_pb2.DeleteArtifactResponse)

    async def _pull_file(
        self,
        artifact: str,
        file: artifact_pb2.ArtifactFile,
        path: Path,
        *,
        on_bytes: OnBytes | None,
    ) -> None:
        """Download one file; an expired URL is replaced by a fresh one."""
        partial = PartialFile(path, size_bytes=file.size_bytes, sha256=file.sha256)
        request = artifact_service_pb2.CreateDownloadRequest(
            name=artifact, kind=file.kind, quantization=file.quantization
        )
        reason = ""
        for number in range(TRIES):
            if partial.is_whole:
                break
            answer = await self._connection.call(
                request, artifact_service_pb2.CreateDownloadResponse
            )
            reason = await self._connection.download(
                answer.url, partial, on_bytes=on_bytes, try_number=number
            )
        if not partial.is_whole:
            raise UnavailableError(
                "DEP_SERVICE_UNAVAILABLE", f"The download of {path.name} broke off: {reason}."
            )
        partial.finish()


def _chosen(
    artifact: artifact_pb2.Artifact,
    *,
    kinds: Sequence[artifact_pb2.ArtifactKind],
    quantization: str,
) -> Sequence[artifact_pb2.ArtifactFile]:
    """The requested files of a hub entry."""
    chosen = [file for file in artifact.files if not kinds or file.kind in kinds]
    if not quantization:
        return chosen
    chosen = [file for file in chosen if file.quantization in ("", quantization)]
    if not any(file.quantization for file in chosen):
        stored = ", ".join(file.quantization for file in artifact.files if file.quantization)
        raise NotFoundError(
            "ARTIFACT_NOT_FOUND",
            f"{artifact.name} has no GGUF of type {quantization}; it has {stored or 'none'}.",
            metadata={"artifact": artifact.name, "quantization": quantization},
        )
    return chosen
