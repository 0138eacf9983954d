"""What a run leaves in the object store: checkpoints while it trains, the adapter at its end."""

import asyncio
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from chassis import telemetry
from chassis.leasing import LeaseSession
from lexicon.faults import Fault
from objects import local_files, transfer
from trainer import wire
from trainer.pipe import CheckpointWritten, Finished
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

log = telemetry.logger(__name__)
ARCHIVE_NAME = "adapter.zip"
ADAPTER_FOLDER = "adapter"
CHECKPOINT_FOLDER = "checkpoints"
MERGES_ARCHIVE_NAME = "merges.zip"
MERGES_FOLDER = "merges"
# How long a failed attempt holds its node for the sake of a checkpoint that is on its way.
SETTLE_SECONDS_MAX = 60.0
SETTLE_TEXT = "The attempt has failed; its last checkpoint is being stored"
# By how much the last checkpoint is ahead of the finished adapter on their way to the store.
HANDOVER_SECONDS_MAX = 20.0
HANDOVER_TEXT = "Training is done; its last checkpoint is being stored"
# ZIP cannot say "no time"; its earliest one is used.
EARLIEST_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644
MODE_SHIFT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A local file and the path that it gets among the task's outputs."""

    source: Path
    path: str
    artifact_kind: artifact_pb2.ArtifactKind = artifact_pb2.ARTIFACT_KIND_UNSPECIFIED
    entries: tuple[str, ...] = ()


async def store(session: LeaseSession, outputs: Sequence[Output]) -> list[work_pb2.OutputFile]:
    """Upload the files to signed URLs and return what names them in CompleteTask.

    Raises:
        Fault: the codes of `objects.transfer.upload`, RUN_LEASE_LOST.
    """
    if not outputs:
        return []
    files = [await asyncio.to_thread(_described, output) for output in outputs]
    signed = await session.sign_outputs(files)
    for output, file, target in zip(outputs, files, signed, strict=True):

        async def fresh_url(file: work_pb2.OutputFile = file) -> str:
            return str((await session.sign_outputs([file]))[0].url)

        await transfer.upload(output.source, target.url, refresh=fresh_url)
        file.uri = target.uri
    return files


async def store_adapter(session: LeaseSession, finished: Finished) -> list[work_pb2.OutputFile]:
    """Upload the adapter's archive, its loose files for the exporter, and the proof beside them."""
    folder = Path(finished.adapter_folder)
    loose = await asyncio.to_thread(_inside, folder)
    archive = folder.with_name(ARCHIVE_NAME)
    await asyncio.to_thread(write_zip, loose, archive)
    outputs = [
        Output(
            source=archive,
            path=ARCHIVE_NAME,
            artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
            entries=tuple(path.name for path in loose),
        ),
        *(Output(source=path, path=f"{ADAPTER_FOLDER}/{path.name}") for path in loose),
    ]
    if finished.proof_path is not None:
        proof = Path(finished.proof_path)
        outputs.append(Output(source=proof, path=f"{ADAPTER_FOLDER}/{proof.name}"))
    if finished.merges_folder is not None:
        outputs.append(await asyncio.to_thread(_merge_archive, Path(finished.merges_folder)))
    return await store(session, outputs)


class CheckpointUploader:
    """Uploads checkpoints behind the back of training: one at a time, the newest first.

    A checkpoint that is overtaken by a newer one before its turn is never uploaded. A failed upload
    costs nothing but that checkpoint; the run goes on. The adapters after merges belong to every
    later checkpoint and are uploaded once. Nobody else deletes checkpoints, so the one that is
    being uploaded stays, however many the run writes meanwhile.

    As a context manager it works until it is left. When that is for a fault after which the run is
    tried again, it goes on for a while: the next attempt begins at the last checkpoint that is
    stored, wherever it runs. Nobody pays for that time.
    """

    def __init__(
        self,
        session: LeaseSession,
        *,
        keep_count: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._keep_count = keep_count
        self._clock = clock
        self._written: list[CheckpointWritten] = []
        self._newest_seconds = 0.0
        self._tried = asyncio.Event()
        self._tried.set()
        self._merges: list[Path] = []
        self._stored_merges: list[work_pb2.OutputFile] = []
        self._uploading: CheckpointWritten | None = None
        self._came = asyncio.Event()
        self._surplus_came = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._running is not None
        try:
            if isinstance(error, Fault) and error.retryable and self.is_behind:
                self._session.report(wire.clock_report(paused=True, reason=SETTLE_TEXT))
                await self.settle(seconds=SETTLE_SECONDS_MAX)
        finally:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @asynccontextmanager
    async def handed_over(self, *, seconds: float = HANDOVER_SECONDS_MAX) -> AsyncIterator[None]:
        """The context in which the finished adapter is stored, once the last checkpoint is.

        Until the adapter is stored, another node may have to repeat what the last checkpoint does
        not hold. So that one comes first; after `seconds` it goes on beside the adapter, which
        waits no longer. The clock is paused while it is uploaded.
        """
        if not self.is_behind:
            yield
            return
        self._session.report(wire.clock_report(paused=True, reason=HANDOVER_TEXT))
        settling = asyncio.create_task(self._go_on_when_settled())
        try:
            await asyncio.wait({settling}, timeout=seconds)
            yield
        finally:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)

    def add(self, written: CheckpointWritten) -> None:
        """A new checkpoint lies on the disk."""
        self._written.append(written)
        self._newest_seconds = self._clock()
        self._tried.clear()
        self._came.set()
        self._surplus_came.set()

    def add_merge(self, path: Path) -> None:
        """The adapter after a merge lies on the disk; checkpoints from now on need it."""
        self._merges.append(path)

    async def run(self) -> None:
        """Upload, and delete what is no longer needed, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_whenever(self._came, self.upload_newest))
            tasks.create_task(_whenever(self._surplus_came, self.prune))

    async def upload_newest(self) -> bool:
        """Upload the newest checkpoint; whether it is stored."""
        newest = self._uploading = self._written[-1]
        try:
            return await self._upload(newest, written_seconds=self._newest_seconds)
        finally:
            self._uploading = None
            self._surplus_came.set()
            if newest is self._written[-1]:
                self._tried.set()

    @property
    def is_behind(self) -> bool:
        """Whether the newest checkpoint is still to be stored."""
        return not self._tried.is_set()

    async def settle(self, *, seconds: float) -> None:
        """Returns when the newest checkpoint is stored, or could not be, or after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tried.wait()

    async def _go_on_when_settled(self) -> None:
        await self._tried.wait()
        self._session.report(wire.clock_report(paused=False, reason=HANDOVER_TEXT))

    async def prune(self) -> int:
        """Delete all but the newest, as many before it as are kept, and the one that goes up.

        Returns:
            How many were deleted.
        """
        older = self._written[:-1]
        surplus = [
            one
            for one in older[: max(0, len(older) - self._keep_count)]
            if one is not self._uploading
        ]
        self._written = [one for one in self._written if one not in surplus]
        for one in surplus:
            await asyncio.to_thread(shutil.rmtree, one.folder, ignore_errors=True)
        return len(surplus)

    async def _upload(self, written: CheckpointWritten, *, written_seconds: float) -> bool:
        folder = Path(written.folder)
        fresh = self._merges[len(self._stored_merges) :]
        try:
            outputs = [
                Output(source=path, path=f"{CHECKPOINT_FOLDER}/{folder.name}/{path.name}")
                for path in await asyncio.to_thread(_inside, folder)
            ]
            self._stored_merges += await store(self._session, [_merge_output(p) for p in fresh])
            # The checkpoint's own files come first: their folder is where a resume begins.
            files = [*await store(self._session, outputs), *self._stored_merges]
        except (Fault, OSError) as error:
            cause = error.code.value if isinstance(error, Fault) else type(error).__name__
            log.warning("checkpoint_upload_failed", step=written.step, cause=cause, why=str(error))
            return False
        checkpoint = work_service_pb2.CheckpointStored(
            step=written.step,
            files=files,
            storing_millis=round(1000 * (self._clock() - written_seconds)),
        )
        self._session.report(work_service_pb2.TaskReport(checkpoint=checkpoint))
        return True


async def _whenever(event: asyncio.Event, act: Callable[[], Awaitable[object]]) -> None:
    while True:
        await event.wait()
        event.clear()
        await act()


def _described(output: Output) -> work_pb2.OutputFile:
    local = local_files.describe(output.source)
    return work_pb2.OutputFile(
        path=output.path,
        size_bytes=local.size_bytes,
        sha256=local.sha256,
        artifact_kind=output.artifact_kind,
        entries=output.entries,
    )


def _merge_output(path: Path) -> Output:
    place = f"{CHECKPOINT_FOLDER}/{MERGES_FOLDER}/{path.parent.name}/{path.name}"
    return Output(source=path, path=place)


def _merge_archive(folder: Path) -> Output:
    """The merge history as one file: the list of runs, and a folder for each adapter."""
    archive = folder.with_name(MERGES_ARCHIVE_NAME)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_zip(files, archive, root=folder)
    return Output(
        source=archive,
        path=MERGES_ARCHIVE_NAME,
        artifact_kind=artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY,
        entries=tuple(path.relative_to(folder).as_posix() for path in files),
    )


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def write_zip(files: Sequence[Path], target: Path, *, root: Path | None = None) -> None:
    """Write the files, by name and in order of their names, to the new archive `target`.

    Args:
        root: folder that the names are relative to; None for names without a folder.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        named = {path.relative_to(root).as_posix() if root else path.name: path for path in files}
        for name, path in sorted(named.items()):
            entry = zipfile.ZipInfo(name, date_time=EARLIEST_TIME)
            entry.external_attr = FILE_MODE << MODE_SHIFT
            # Trained weights are noise to a compressor: packing them only takes time.
            entry.compress_type = (
                zipfile.ZIP_STORED if path.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
            )
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)
