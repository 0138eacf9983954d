"""From uploaded bytes to a dataset version: arrival, inspection, room, and then one transaction.

An inspection may outlast the call that started it. It continues, and a repeated call waits for the
same inspection, so that retries do not read a large file again.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from chassis import telemetry
from corpus.formats import Inspection
from hub.domain.datasets import Refusal, Upload, UploadState, check_arrival, stats_of
from hub.domain.quota import Quota, check_dataset_room
from hub.janitor import Janitor
from hub.reading import PARALLEL, Readers
from hub.store import Store
from lexicon.faults import Fault, FaultCode
from objects.store import ObjectStore

log = telemetry.logger(__name__)


class Intake:
    """Turns pending uploads into versions, or refuses them."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        readers: Readers,
        *,
        quota_of: Callable[[str], Awaitable[Quota]],
        janitor: Janitor,
    ) -> None:
        self._store = store
        self._objects = objects
        self._quota_of = quota_of
        self._janitor = janitor
        self._readers = readers
        # A copy on this disk waits for its reader, too.
        self._reads = asyncio.Semaphore(PARALLEL)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def finish(self, upload: Upload) -> None:
        """Ends a pending upload; afterwards it is committed or refused.

        Raises:
            Fault: STORAGE_OBJECT_NOT_FOUND before the bytes have arrived, QUOTA_DATASETS_EXCEEDED;
                both leave the upload pending.
        """
        task = self._running.get(upload.upload_id)
        if task is None:
            task = asyncio.create_task(self._finish(upload))
            self._running[upload.upload_id] = task
            task.add_done_callback(lambda _: self._running.pop(upload.upload_id, None))
        await asyncio.shield(task)

    async def preview(self, object_key: str, *, row_count: int) -> list[str]:
        """The first rows of a stored file as they were written, in JSON."""
        async with self._reads, self._on_disk(object_key) as path:
            return await self._readers.preview(path, row_count=row_count)

    async def _finish(self, upload: Upload) -> None:
        info = await self._objects.head(upload.object_key)
        if info is None:
            raise Fault(
                FaultCode.STORAGE_OBJECT_NOT_FOUND,
                "The bytes of the upload have not arrived; PUT them to its URL first.",
                upload=upload.upload_id,
            )
        try:
            check_arrival(upload, size_bytes=info.size_bytes, sha256=info.sha256)
            inspection = await self._inspect(upload)
        except Fault as fault:
            if not fault.code.startswith("DATASET_"):
                raise
            await self._refuse(upload, fault)
            return
        quota = await self._quota_of(upload.announced.name.project)
        await self._commit(upload, inspection, quota)

    async def _inspect(self, upload: Upload) -> Inspection:
        async with self._reads, self._on_disk(upload.object_key) as path:
            return await self._readers.inspect(path, file_name=upload.announced.file_name)

    async def _commit(self, upload: Upload, inspection: Inspection, quota: Quota) -> None:
        announced = upload.announced
        name = announced.name
        async with self._store.unit() as unit:
            usage = await unit.lock_usage(name.project)
            current = await unit.upload(upload.upload_id, project=name.project, lock=True)
            if current is None or current.state is not UploadState.PENDING:
                return
            dataset = await unit.dataset(name, lock=True)
            latest = dataset.latest if dataset and dataset.delete_time is None else None
            if latest is not None and latest.sha256 == announced.sha256:
                await unit.commit_upload(upload.upload_id, version=latest.name.number)
                await unit.add_garbage([upload.object_key])
            else:
                check_dataset_room(usage, quota, pending_bytes=0, new_bytes=announced.size_bytes)
                version = await unit.add_version(
                    upload,
                    row_format=inspection.format,
                    trainable_row_count=inspection.trainable_row_count,
                    stats=stats_of(inspection),
                )
                await unit.change_usage(name.project, dataset_bytes=announced.size_bytes)
                await unit.commit_upload(upload.upload_id, version=version)
        log.info("dataset version stored", dataset=str(name), rows=inspection.row_count)
        await self._janitor.tidy()

    async def _refuse(self, upload: Upload, fault: Fault) -> None:
        refusal = Refusal(
            code=str(fault.code),
            message=fault.message,
            remedy=fault.remedy,
            metadata=fault.metadata,
        )
        async with self._store.unit() as unit:
            await unit.refuse_upload(upload.upload_id, refusal)
            await unit.add_garbage([upload.object_key])
        log.info("dataset file refused", dataset=str(upload.announced.name), code=str(fault.code))
        await self._janitor.tidy()

    @asynccontextmanager
    async def _on_disk(self, object_key: str) -> AsyncIterator[Path]:
        """A file with the bytes of an object: its own where the store is a folder, else a copy."""
        path = await self._objects.local_path(object_key)
        if path is not None:
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="tunesmith-hub-") as folder:
            copy = Path(folder) / "rows"
            with copy.open("wb") as file:
                async for chunk in await self._objects.get(object_key):
                    await asyncio.to_thread(file.write, chunk)
            yield copy
