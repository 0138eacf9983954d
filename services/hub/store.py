"""Rows of datasets, models, artifacts and quotas: the only place of the hub that sees SQL.

Work is done in a `Unit`, one transaction. Whatever changes how much a project keeps locks the
project's usage row first, so that parallel uploads cannot exceed a quota together.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from chassis import idempotency
from chassis.postgres import Connection, Pool, Queries
from corpus.formats import Format
from hub.domain.artifacts import Artifact, ArtifactFile, ArtifactKind
from hub.domain.datasets import (
    Announcement,
    Dataset,
    Refusal,
    Stats,
    Upload,
    UploadState,
    Version,
)
from hub.domain.models import Consent, Model, ModelFile
from hub.domain.quota import Usage
from lexicon.names import ArtifactName, DatasetName, DatasetVersionName, ModelName, RunName

_SQL: Final = Queries.load("hub")

# Positions and version numbers grow; a first page begins below the largest one there can be.
NEWEST: Final = (1 << 63) - 1
NEWEST_VERSION: Final = (1 << 31) - 1


class Store:
    """The database of the hub."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def unit(self) -> AsyncIterator["Unit"]:
        """One transaction; it commits when the block ends well."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield Unit(connection)


class Unit:
    """What can be done within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answers = idempotency.Answers(connection)

    async def now(self) -> datetime:
        """The database's clock."""
        now: datetime = await self.connection.fetchval(_SQL["now"])
        return now

    # Usage

    async def lock_usage(self, project: str) -> Usage:
        """What a project keeps; nobody else changes it until the transaction ends."""
        await self.connection.execute(_SQL["open_usage"], project)
        return _usage(await self.connection.fetchrow(_SQL["lock_usage"], project))

    async def usage(self, project: str) -> Usage:
        """What a project keeps."""
        return _usage(await self.connection.fetchrow(_SQL["usage"], project))

    async def change_usage(
        self, project: str, *, dataset_bytes: int = 0, artifact_bytes: int = 0
    ) -> None:
        """Adds to what a project keeps; negative frees."""
        await self.connection.execute(_SQL["change_usage"], project, dataset_bytes, artifact_bytes)

    async def pending_bytes(self, project: str, *, besides_upload: str = "") -> int:
        """Bytes that are announced and may still come, besides one upload."""
        pending: int = await self.connection.fetchval(
            _SQL["pending_bytes"], project, besides_upload
        )
        return pending

    # Uploads

    async def insert_upload(self, upload: Upload) -> None:
        """Writes a new upload."""
        announced = upload.announced
        await self.connection.execute(
            _SQL["insert_upload"],
            upload.upload_id,
            announced.name.project,
            announced.name.dataset,
            announced.size_bytes,
            announced.sha256,
            announced.file_name,
            announced.display_name,
            upload.object_key,
            upload.expire_time,
        )

    async def upload(self, upload_id: str, *, project: str, lock: bool = False) -> Upload | None:
        """An upload of a project."""
        query = _SQL["lock_upload" if lock else "upload"]
        row = await self.connection.fetchrow(query, upload_id, project)
        return None if row is None else _upload(row)

    async def prolong_upload(self, upload_id: str, *, expire_time: datetime) -> None:
        """Lets a pending upload live until a later time."""
        await self.connection.execute(_SQL["prolong_upload"], upload_id, expire_time)

    async def commit_upload(self, upload_id: str, *, version: int) -> None:
        """Records which version a pending upload became."""
        await self.connection.execute(_SQL["commit_upload"], upload_id, version)

    async def refuse_upload(self, upload_id: str, refusal: Refusal) -> None:
        """Records why a pending upload became nothing."""
        document = msgspec.json.encode(refusal).decode()
        await self.connection.execute(_SQL["refuse_upload"], upload_id, document)

    async def expire_uploads(self, *, before: datetime) -> int:
        """Gives up uploads, at most a hundred, whose time ended; their objects are garbage."""
        return len(await self.connection.fetch(_SQL["expire_uploads"], before))

    # Datasets

    async def add_version(
        self,
        upload: Upload,
        *,
        row_format: Format,
        trainable_row_count: int,
        stats: Stats,
    ) -> int:
        """Writes the next version of a new, living or deleted dataset; returns its number."""
        announced = upload.announced
        name = announced.name
        version: int = await self.connection.fetchval(
            _SQL["put_dataset"], name.project, name.dataset, announced.display_name
        )
        await self.connection.execute(
            _SQL["insert_version"],
            name.project,
            name.dataset,
            version,
            str(row_format),
            trainable_row_count,
            announced.size_bytes,
            announced.sha256,
            announced.file_name,
            upload.object_key,
            stats.row_count,
            stats.duplicate_row_count,
            stats.character_count,
            stats.longest_row_characters,
            stats.longest_row_number,
            stats.multi_turn_row_count,
        )
        return version

    async def dataset(self, name: DatasetName, *, lock: bool = False) -> Dataset | None:
        """A dataset, also a deleted one."""
        query = _SQL["lock_dataset" if lock else "dataset"]
        row = await self.connection.fetchrow(query, name.project, name.dataset)
        if row is None:
            return None
        return (await self._with_latest(name.project, [row]))[0][1]

    async def dataset_ids(self, project: str) -> list[str]:
        """Ids of the newest thousand datasets of a project."""
        rows = await self.connection.fetch(_SQL["dataset_ids"], project)
        return [row["dataset"] for row in rows]

    async def list_datasets(
        self, project: str, *, before_position: int, count: int
    ) -> list[tuple[int, Dataset]]:
        """Datasets with their positions below one, newest first."""
        rows = await self.connection.fetch(_SQL["list_datasets"], project, before_position, count)
        return await self._with_latest(project, rows)

    async def version(self, name: DatasetVersionName) -> tuple[Version, datetime | None] | None:
        """A version and when it was deleted."""
        row = await self.connection.fetchrow(
            _SQL["version"], name.project, name.dataset, name.number
        )
        return None if row is None else (_version(row), row["delete_time"])

    async def list_versions(
        self, name: DatasetName, *, before_version: int, count: int
    ) -> list[Version]:
        """Versions below a number, newest first."""
        rows = await self.connection.fetch(
            _SQL["list_versions"], name.project, name.dataset, before_version, count
        )
        return [_version(row) for row in rows]

    async def delete_dataset(self, name: DatasetName) -> datetime | None:
        """Deletes a dataset; the bytes that no run holds are freed. None if it was deleted."""
        delete_time: datetime | None = await self.connection.fetchval(
            _SQL["delete_dataset"], name.project, name.dataset
        )
        if delete_time is not None:
            await self.connection.execute(_SQL["delete_versions"], name.project, name.dataset)
            await self._purge(name.project, [name.dataset])
        return delete_time

    async def hold_version(self, run: RunName, name: DatasetVersionName) -> None:
        """Keeps the bytes of a version for a run, however often that is said."""
        await self.connection.execute(
            _SQL["hold_version"], run.project, run.run, name.dataset, name.number
        )

    async def is_held(self, run: RunName, name: DatasetVersionName) -> bool:
        """Whether a run holds a version already."""
        held: bool = await self.connection.fetchval(
            _SQL["is_held"], run.project, run.run, name.dataset, name.number
        )
        return held

    async def release_versions(self, run: RunName) -> None:
        """Lets go of what a run held; deleted versions that nobody else holds are freed."""
        rows = await self.connection.fetch(_SQL["release_versions"], run.project, run.run)
        if rows:
            await self._purge(run.project, sorted({row["dataset"] for row in rows}))

    async def _purge(self, project: str, datasets: Sequence[str]) -> None:
        """Frees and gives up the bytes of deleted versions that no run holds."""
        rows = await self.connection.fetch(_SQL["purge_versions"], project, list(datasets))
        await self.change_usage(project, dataset_bytes=-sum(row["size_bytes"] for row in rows))
        await self.add_garbage([row["object_key"] for row in rows])

    async def _with_latest(
        self, project: str, rows: Sequence[asyncpg.Record]
    ) -> list[tuple[int, Dataset]]:
        ids = [row["dataset"] for row in rows]
        found = await self.connection.fetch(_SQL["latest_versions"], project, ids)
        latest = {row["dataset"]: _version(row) for row in found}
        return [(row["position"], _dataset(row, latest.get(row["dataset"]))) for row in rows]

    # Models

    async def put_model(self, model: Model) -> Model:
        """Writes an added model; adding it again renews revision and consent."""
        assert model.name is not None
        assert model.consent is not None
        row = await self.connection.fetchrow(
            _SQL["insert_model"],
            model.name.project,
            model.name.model,
            model.model_id,
            model.revision,
            model.consent.user,
            model.consent.consent_time,
        )
        return _model(row)

    async def model(self, name: ModelName) -> Model | None:
        """An added model."""
        row = await self.connection.fetchrow(_SQL["model"], name.project, name.model)
        return None if row is None else _model(row)

    async def list_models(self, project: str) -> list[Model]:
        """The added models of a project by name."""
        return [_model(row) for row in await self.connection.fetch(_SQL["list_models"], project)]

    async def delete_model(self, name: ModelName) -> bool:
        """Takes an added model out of a project; False when it was not there."""
        row = await self.connection.fetchrow(_SQL["delete_model"], name.project, name.model)
        return row is not None

    async def put_catalog_files(self, model_id: str, files: Sequence[ModelFile]) -> None:
        """Writes which objects are the files of a catalog model."""
        for file in files:
            await self.connection.execute(
                _SQL["put_catalog_file"],
                model_id,
                file.path,
                file.object_key,
                file.size_bytes,
                file.sha256,
            )
        paths = [file.path for file in files]
        await self.connection.execute(_SQL["forget_catalog_files"], model_id, paths)

    async def catalog_files(self) -> dict[str, tuple[ModelFile, ...]]:
        """The files of catalog models that lie in the platform's own store, by model id."""
        files: dict[str, tuple[ModelFile, ...]] = {}
        for row in await self.connection.fetch(_SQL["catalog_files"]):
            file = ModelFile(
                path=row["path"],
                object_key=row["object_key"],
                size_bytes=row["size_bytes"],
                sha256=row["sha256"],
            )
            files[row["model_id"]] = (*files.get(row["model_id"], ()), file)
        return files

    # Artifacts

    async def put_artifact_file(
        self, name: ArtifactName, *, run: RunName, base_model: str, file: ArtifactFile
    ) -> None:
        """Writes a file of an artifact, in the place of its like; the first one makes it."""
        await self.connection.execute(
            _SQL["put_artifact"], name.project, name.artifact, str(run), base_model
        )
        await self.connection.execute(
            _SQL["put_artifact_file"],
            name.project,
            name.artifact,
            str(file.kind),
            file.quantization,
            file.file_name,
            file.size_bytes,
            file.sha256,
            file.object_key,
            list(file.entries),
        )

    async def artifact(self, name: ArtifactName) -> Artifact | None:
        """A hub entry."""
        row = await self.connection.fetchrow(_SQL["artifact"], name.project, name.artifact)
        return None if row is None else (await self._with_files(name.project, [row]))[0][1]

    async def list_artifacts(
        self, project: str, *, run: str, before_position: int, count: int
    ) -> list[tuple[int, Artifact]]:
        """Hub entries with their positions below one, newest first; `run` empty means all."""
        rows = await self.connection.fetch(
            _SQL["list_artifacts"], project, before_position, run, count
        )
        return await self._with_files(project, rows)

    async def registered_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of some objects that are files of a hub entry."""
        rows = await self.connection.fetch(_SQL["registered_keys"], list(keys))
        return {row["object_key"] for row in rows}

    async def delete_artifact(self, artifact: Artifact) -> None:
        """Deletes a hub entry, frees its bytes and gives up its objects."""
        name = artifact.name
        deleted = await self.connection.fetchrow(
            _SQL["delete_artifact"], name.project, name.artifact
        )
        if deleted is not None:
            await self.change_usage(name.project, artifact_bytes=-artifact.size_bytes)
            await self.add_garbage([file.object_key for file in artifact.files])

    async def _with_files(
        self, project: str, rows: Sequence[asyncpg.Record]
    ) -> list[tuple[int, Artifact]]:
        ids = [row["artifact"] for row in rows]
        files: dict[str, tuple[ArtifactFile, ...]] = {}
        for file in await self.connection.fetch(_SQL["artifact_files"], project, ids):
            files[file["artifact"]] = (*files.get(file["artifact"], ()), _artifact_file(file))
        return [(row["position"], _artifact(row, files.get(row["artifact"], ()))) for row in rows]

    # Garbage

    async def add_garbage(self, object_keys: Sequence[str]) -> None:
        """Records objects that no row refers to any more."""
        await self.connection.execute(_SQL["add_garbage"], list(object_keys))

    async def some_garbage(self) -> list[str]:
        """A hundred objects to remove, oldest first."""
        return [row["object_key"] for row in await self.connection.fetch(_SQL["some_garbage"])]

    async def is_garbage(self, object_key: str) -> bool:
        """Whether an object was given up and may vanish at any moment."""
        found: bool = await self.connection.fetchval(_SQL["is_garbage"], object_key)
        return found

    async def forget_garbage(self, object_key: str) -> None:
        """Records that an object was removed from the store."""
        await self.connection.execute(_SQL["forget_garbage"], object_key)


def _usage(row: asyncpg.Record | None) -> Usage:
    if row is None:
        return Usage(dataset_bytes=0, artifact_bytes=0)
    return Usage(dataset_bytes=row["dataset_bytes"], artifact_bytes=row["artifact_bytes"])


def _upload(row: asyncpg.Record) -> Upload:
    announced = Announcement(
        name=DatasetName(project=row["project"], dataset=row["dataset"]),
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        file_name=row["file_name"],
        display_name=row["display_name"],
    )
    refusal = row["refusal"]
    return Upload(
        upload_id=row["upload_id"],
        announced=announced,
        object_key=row["object_key"],
        state=UploadState(row["state"]),
        expire_time=row["expire_time"],
        version=row["version"],
        refusal=None if refusal is None else msgspec.json.decode(refusal, type=Refusal),
    )


def _dataset(row: asyncpg.Record, latest: Version | None) -> Dataset:
    return Dataset(
        name=DatasetName(project=row["project"], dataset=row["dataset"]),
        display_name=row["display_name"],
        latest=latest,
        version_count=row["version_count"],
        create_time=row["create_time"],
        delete_time=row["delete_time"],
    )


def _version(row: asyncpg.Record) -> Version:
    stats: dict[str, Any] = {field: row[field] for field in Stats.__slots__}
    return Version(
        name=DatasetVersionName(
            project=row["project"], dataset=row["dataset"], number=row["version"]
        ),
        format=Format(row["format"]),
        trainable_row_count=row["trainable_row_count"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        file_name=row["file_name"],
        object_key=row["object_key"],
        create_time=row["create_time"],
        stats=Stats(**stats),
    )


def _model(row: asyncpg.Record | None) -> Model:
    assert row is not None
    return Model(
        name=ModelName(project=row["project"], model=row["model"]),
        model_id=row["model_id"],
        revision=row["revision"],
        consent=Consent(user=row["consent_user"], consent_time=row["consent_time"]),
        create_time=row["create_time"],
    )


def _artifact_file(row: asyncpg.Record) -> ArtifactFile:
    return ArtifactFile(
        kind=ArtifactKind(row["kind"]),
        quantization=row["quantization"],
        file_name=row["file_name"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        object_key=row["object_key"],
        entries=tuple(row["entries"]),
        create_time=row["create_time"],
    )


def _artifact(row: asyncpg.Record, files: tuple[ArtifactFile, ...]) -> Artifact:
    return Artifact(
        name=ArtifactName(project=row["project"], artifact=row["artifact"]),
        run=RunName.parse(row["run"]),
        base_model=row["base_model"],
        files=files,
        create_time=row["create_time"],
    )
