"""What the agent does with a lease: files in, child at work, bundles out.

The agent holds the node token and the signed URLs; the child gets local paths and nothing else.
"""

import asyncio
import errno
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from chassis import activities, evictions, telemetry
from chassis.bases import Bases, digest_of
from chassis.inputs import InputUrls
from chassis.leasing import LeaseSession
from exporter import wire
from exporter.child import Child
from exporter.config import Config
from exporter.pipe import OF_BASE, BaseNeededError, Export, Exported, Progress
from lexicon.faults import Fault, FaultCode, Stage
from objects import local_files, transfer
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

log = telemetry.logger(__name__)

ADAPTER_CONFIG: Final = "adapter_config.json"
# What a rotten file of the base could be the cause of; then it is looked at again, byte by byte.
_DOUBTS_BASE: Final = frozenset(
    {
        FaultCode.EXPORT_WRONG_BASE,
        FaultCode.EXPORT_TEMPLATE_MISMATCH,
        FaultCode.EXPORT_VERIFY_MISMATCH,
        FaultCode.EXPORT_VOCABULARY_MISMATCH,
        FaultCode.MODEL_NOT_CONVERTIBLE,
    }
)


class Exporter:
    """Handles leases one after another; keeps one child ready between them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._bases = Bases(
            config.model_cache,
            bound_bytes=config.model_cache_bytes,
            hub_url=config.model_hub_url,
            hub_token=config.model_hub_token,
        )
        self._child: Child | None = None
        self._child_lock = asyncio.Lock()
        self._preparing: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Start the child ahead of the first lease, and wait until its self-test has passed.

        Raises:
            Fault: what the self-test found.
        """
        await asyncio.to_thread(self._forget_earlier_work)
        await self._ready_child()

    async def close(self) -> None:
        """End the child."""
        if self._preparing is not None:
            self._preparing.cancel()
        await self._end_child()

    async def handle(self, session: LeaseSession) -> None:
        """Export what is leased, or stop at once on request."""
        work = asyncio.create_task(self._work(session))
        aborted = asyncio.create_task(session.aborted.wait())
        try:
            await asyncio.wait({work, aborted}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("export_aborted", run=session.lease.run)
        finally:
            was_busy = not work.done()
            for task in (work, aborted):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self._bases.let_go()
            if was_busy and self._child is not None:
                await self._child.kill()
            # The next lease should not wait for a child that loads and proves its libraries.
            self._preparing = asyncio.create_task(self._prepare())
            await asyncio.to_thread(shutil.rmtree, self._folder(session), ignore_errors=True)

    async def _prepare(self) -> None:
        # Startup errors surface on the lease that needs the process.
        with suppress(Fault):
            await self._ready_child()

    async def _work(self, session: LeaseSession) -> None:
        try:
            with telemetry.bind(run=session.lease.run):
                await self._export(session)
        except Fault as fault:
            fault.stage = fault.stage or Stage.EXPORTING
            await session.fail(fault)
        except Exception as error:
            log.exception("lease_failed", run=session.lease.run)
            await session.fail(unforeseen(error))

    async def _export(self, session: LeaseSession) -> None:
        session.report(wire.stage_report(Stage.EXPORTING))
        await session.flush()
        task, folder = session.lease.export, self._folder(session)
        renewed = InputUrls(session).renewed
        adapter = await self._fetch_adapter(task, folder / "adapter", renewed)
        base = await self._identify(task.base, renewed)
        outputs: list[work_pb2.OutputFile] = []
        proofs: list[run_pb2.ExportProof] = []
        for quantization in task.quantizations:
            target = folder / "out" / f"gguf-{quantization}.zip"
            target.parent.mkdir(parents=True, exist_ok=True)
            job = Export(
                checkpoint="",
                base_key=base.key,
                base_model=task.base.base_model or task.base.model_id,
                adapter=str(adapter),
                quantization=quantization,
                target=str(target),
                run=session.lease.run,
            )
            exported = await self._run_checked(session, job, base)
            session.report(activities.report(f"storing {quantization}"))
            outputs.append(await self._store(session, target, quantization, exported))
            proofs.append(wire.export_proof(quantization, exported.proof))
            target.unlink()
        await session.complete(outputs, export=work_service_pb2.ExportResult(proofs=proofs))

    async def _run_checked(self, session: LeaseSession, job: Export, base: "_Base") -> Exported:
        """Runs a job; no verdict falls over a base whose files were not just checked.

        Files and their conversion stay for months, and disks rot. When a verdict may be their fault
        they are compared with their digests and converted again, once.
        """
        try:
            return await self._run_with_base(session, job, base)
        except Fault as fault:
            if fault.code is FaultCode.EXPORT_QUANTIZATION_BROKEN:
                # This machine computed wrongly: the next child proves its kernel before any work.
                await self._end_child()
            if fault.code not in _DOUBTS_BASE and fault.metadata.get("of") != OF_BASE:
                raise
            log.warning("base_doubted", code=fault.code, base=job.base_model)
            try:
                folder = await self._fetch_base(session, base, is_doubted=True)
            except Fault as unchecked:
                log.warning("base_not_checked", code=unchecked.code)
                raise fault from unchecked
        again = msgspec.structs.replace(job, checkpoint=str(folder), is_converted_anew=True)
        return await self._run(session, again)

    async def _run_with_base(self, session: LeaseSession, job: Export, base: "_Base") -> Exported:
        """Runs a job, with the base's files only where there is no conversion of them."""
        try:
            return await self._run(session, job)
        except BaseNeededError:
            folder = await self._fetch_base(session, base)
        return await self._run(session, msgspec.structs.replace(job, checkpoint=str(folder)))

    async def _end_child(self) -> None:
        if self._child is not None:
            await self._child.kill()

    async def _run(self, session: LeaseSession, job: Export) -> Exported:
        child = await self._ready_child()
        last_step = ""

        def show(progress: Progress) -> None:
            nonlocal last_step
            session.report(wire.activity_report(progress, quantization=job.quantization))
            if progress.step != last_step:
                last_step = progress.step
                log.info("export_step", step=progress.step, quantization=job.quantization)

        exported = await child.export(job, show, evictions.report)
        log.info("exported", quantization=job.quantization, seconds=exported.seconds)
        return exported

    async def _store(
        self, session: LeaseSession, path: Path, quantization: str, exported: Exported
    ) -> work_pb2.OutputFile:
        local = await asyncio.to_thread(local_files.describe, path)
        output = wire.bundle_output(
            path=path.name,
            size_bytes=local.size_bytes,
            sha256=local.sha256,
            quantization=quantization,
            entries=exported.entries,
        )

        async def fresh_url() -> str:
            return str((await session.sign_outputs([output]))[0].url)

        (signed,) = await session.sign_outputs([output])
        await transfer.upload(path, signed.url, refresh=fresh_url)
        output.uri = signed.uri
        return output

    async def _fetch_adapter(
        self, task: work_pb2.ExportTask, folder: Path, renewed: transfer.Refresh
    ) -> Path:
        """The folder of the adapter's files.

        Raises:
            Fault: EXPORT_ADAPTER_MISSING before anything is fetched or converted (003-04).
        """
        if not any(Path(file.path).name == ADAPTER_CONFIG for file in task.adapter):
            raise Fault(FaultCode.EXPORT_ADAPTER_MISSING)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        paths = await transfer.download(task.adapter, folder, refresh=renewed)
        return next(path.parent for path in paths if path.name == ADAPTER_CONFIG)

    async def _identify(self, base: work_pb2.BaseModelInput, renewed: transfer.Refresh) -> "_Base":
        """What the base is called in the cache of conversions."""
        commit = await self._bases.commit_of(base)
        if base.files:
            key = digest_of(base.files)
        else:
            key = hashlib.sha256(f"{base.model_id}@{commit}".encode()).hexdigest()[:32]
        return _Base(key=key, source=base, renewed=renewed, commit=commit)

    async def _fetch_base(
        self, session: LeaseSession, base: "_Base", *, is_doubted: bool = False
    ) -> Path:
        """Folder of the base's files on this disk, held until the lease ends."""
        return await self._bases.fetch(
            session, base.source, base.renewed, commit=base.commit, is_doubted=is_doubted
        )

    async def _ready_child(self) -> Child:
        async with self._child_lock:
            if self._child is None or not self._child.alive:
                config = self._config
                self._child = await Child.start(
                    log_path=config.work_dir / "logs" / "child.log",
                    cache=config.model_cache / "gguf",
                    vendor=config.llama_vendor,
                    thread_count=config.threads or core_count(),
                    cache_bytes=config.model_cache_bytes,
                )
                ready = await self._child.ready()
                log.info("child_ready", llama=ready.llama_version, fast_types=ready.fast_types)
            return self._child

    def _folder(self, session: LeaseSession) -> Path:
        """A folder of this lease alone: two attempts of a run never share files."""
        name = hashlib.sha256(session.lease.lease_id.encode()).hexdigest()[:32]
        return self._config.work_dir / "exports" / name

    def _forget_earlier_work(self) -> None:
        """Deletes what an earlier process of this node left; its leases are lost."""
        shutil.rmtree(self._config.work_dir / "exports", ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """A base model: the name of its conversion in the cache, and where its files come from.

    Attributes:
        renewed: gives URLs of its files once those of the lease have ended.
        commit: of a model on the hub.
    """

    key: str
    source: work_pb2.BaseModelInput
    renewed: transfer.Refresh
    commit: str = ""


def unforeseen(error: Exception) -> Fault:
    """The fault of an error that nothing else caught; a full disk can strike anywhere."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Fault(FaultCode.EXPORT_DISK_FULL, stage=Stage.EXPORTING)
    kind = type(error).__name__
    return Fault(FaultCode.INTERNAL_UNEXPECTED, stage=Stage.EXPORTING, kind=kind)


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
