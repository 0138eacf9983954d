"""What the agent does with a lease: files in, child at work, adapter out.

The agent holds the node token and the signed URLs; the child gets local paths and nothing else.
"""

import asyncio
import errno
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from chassis import activities, telemetry
from chassis.bases import Bases, digest_of
from chassis.child.process import END_SECONDS_MAX
from chassis.inputs import InputUrls
from chassis.leasing import LeaseSession
from lexicon.faults import Fault, FaultCode, Stage
from lexicon.names import RunName
from objects import transfer
from trainer import node, outputs, wire
from trainer.child import Child, stuck_text
from trainer.claim import Claim
from trainer.config import Config
from trainer.domain.plan import Base, TrainPlan
from trainer.domain.temperature import Thermostat
from trainer.pipe import (
    CheckpointWritten,
    Doing,
    Failed,
    Finish,
    Finished,
    FromChild,
    Ready,
    RunMerged,
    Sampled,
    StageBegan,
    Started,
    StepTaken,
    Terms,
    UnslothFailed,
    Warned,
)
from trainer.thermal import ThermalGuard, limits
from trainer.trackers import Destination, tracker_for
from trainer.tracking import AttemptEnd, Tracking, subject_of
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

log = telemetry.logger(__name__)
# Logs of attempts, as `_log_path` names them; for an operator who looks after something went wrong.
LOG_PATTERN = "*.*.*.log"
LOGS_KEPT_COUNT = 500
# What the store says of a file that no other try brings back.
LOST_CODES = frozenset({FaultCode.STORAGE_OBJECT_NOT_FOUND, FaultCode.STORAGE_CHECKSUM_MISMATCH})
LOST_TEXT = "A checkpoint cannot be fetched; its steps are taken again, and charged once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The inputs of a task on the local disk."""

    base: Base
    datasets: tuple[Path, ...]
    validation: Path | None
    checkpoints: tuple[Path, ...]


class Trainer:
    """Handles leases one after another; keeps one child ready between them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._tracking = Destination(
            tool=config.tracking, uri=config.tracking_uri, token=config.tracking_token
        )
        self._bases = Bases(
            config.model_cache,
            bound_bytes=config.model_cache_bytes,
            hub_url=config.model_hub_url,
            hub_token=config.model_hub_token,
        )
        self._child: Child | None = None
        self._child_lock = asyncio.Lock()
        self._claim = Claim(config.work_dir)
        self._preparing: asyncio.Task[None] | None = None

    @property
    def warm_models(self) -> tuple[str, ...]:
        """Base models in the child's memory."""
        return self._child.cached_models if self._child else ()

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the child found that this machine can do."""
        return self._child.capabilities if self._child else ()

    @property
    def unfit_reason(self) -> str:
        """Why this node may take no work now; empty when it may."""
        if self._child is not None and self._child.is_stuck:
            return stuck_text(self._child.pid)
        return "" if self._claim.take() else stuck_text(None)

    async def handle(self, session: LeaseSession) -> None:
        """Train what is leased, or stop at once on request."""
        work = asyncio.create_task(self._work(session))
        aborted = asyncio.create_task(session.aborted.wait())
        try:
            await asyncio.wait({work, aborted}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("run_aborted", run=session.lease.run)
                # Before anything is tidied up: the device must be free within a second.
                await self.close()
        finally:
            for task in (work, aborted):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await work
            await self._let_go(session)

    async def ready(self) -> None:
        """Sweep up after an earlier process of this node, and have a child ready for a lease."""
        runs = self._config.work_dir / "runs"
        await asyncio.to_thread(shutil.rmtree, runs, ignore_errors=True)
        await self._prepare()

    async def close(self) -> None:
        """End the child."""
        if self._preparing is not None:
            self._preparing.cancel()
        if (child := self._child) is None:
            return
        try:
            await child.kill()
        except Fault as fault:
            # It is kept in mind: no other may be started beside one that may hold the device.
            log.error("child_stuck", pid=child.pid, reason=fault.message)  # noqa: TRY400 - no trace
            return
        if self._child is child:
            self._child = None
            self._claim.drop()

    async def _work(self, session: LeaseSession) -> None:
        task = _Task(session=session, folder=self._run_folder(session.lease))
        outcome = AttemptEnd.CANCELLED
        try:
            await self._train(task)
            outcome = AttemptEnd.COMPLETED
        except Fault as fault:
            outcome = AttemptEnd.FAILED
            await session.fail(_with_stage(fault, task.stage))
        except Exception as error:
            log.exception("lease_failed", run=session.lease.run)
            outcome = AttemptEnd.FAILED
            await session.fail(_with_stage(unforeseen(error), task.stage))
        finally:
            if task.tracking is not None:
                task.tracking.end(outcome)

    async def _train(self, task: "_Task") -> None:
        session = task.session
        task.enter(Stage.DATA_DOWNLOAD)
        files = await self._fetch(session, task.folder)
        plan = wire.plan_from_lease(
            session.lease,
            base=files.base,
            dataset_paths=files.datasets,
            validation_path=files.validation,
            checkpoint_folders=files.checkpoints,
            work_folder=task.folder,
            log_path=self._log_path(session.lease),
        )
        task.plan = plan
        child = await self._ready_child()
        async with outputs.CheckpointUploader(
            session, keep_count=plan.checkpoints.keep_count
        ) as uploader:
            finished = await self._drive(child, plan, task, uploader)
            task.enter(Stage.UPLOAD)
            async with uploader.handed_over():
                stored = await outputs.store_adapter(session, finished)
                result = work_service_pb2.TrainResult(
                    metrics=task.metrics,
                    samples=[wire.sample(answer) for answer in finished.samples],
                    merges=task.merges,
                )
                await session.complete(stored, train=result)

    async def _drive(
        self,
        child: Child,
        plan: TrainPlan,
        task: "_Task",
        uploader: outputs.CheckpointUploader,
    ) -> Finished:
        """Give the plan to the child and pass on what it says until it has ended."""
        guard = ThermalGuard(
            task.session,
            child,
            Thermostat(limits=limits(task.session.lease.train.training)),
            node.temperature_celsius,
        )
        side_tasks = [
            asyncio.create_task(guard.run()),
            asyncio.create_task(self._pass_finish_on(child, task.session)),
        ]
        try:
            async for message in child.train(plan):
                if isinstance(message, Finished):
                    return message
                self._pass_on(message, task, uploader)
                if isinstance(message, Started):
                    guard.training_began()
        except Fault as fault:
            # The guard ends the child, which then looks like one that died by itself.
            raise (guard.fault or fault) from fault
        finally:
            for side_task in side_tasks:
                side_task.cancel()
            await asyncio.gather(*side_tasks, return_exceptions=True)
        raise Fault(FaultCode.RUNTIME_WORKER_LOST)

    def _pass_on(
        self, message: FromChild, task: "_Task", uploader: outputs.CheckpointUploader
    ) -> None:
        report = work_service_pb2.TaskReport
        match message:
            case StageBegan():
                task.enter(Stage(message.stage))
            case Doing():
                task.session.report(activities.report(message.text))
            case Started():
                started = work_service_pb2.TrainingStarted(
                    from_step=message.from_step, total_steps=message.total_steps
                )
                task.session.report(report(training_started=started))
                task.tracking = self._tracking_of(task.plan, message.from_step)
            case StepTaken():
                task.note(wire.metrics(message))
            case Warned():
                task.session.report(report(warning=wire.warning(message)))
            case CheckpointWritten():
                uploader.add(message)
            case RunMerged():
                task.merges.append(wire.merge(message.record))
                if message.path is not None:
                    uploader.add_merge(Path(message.path))
                task.session.report(wire.samples_report(task.samples, task.merges))
            case Sampled():
                task.samples = [wire.sample(answer) for answer in message.samples]
                task.session.report(wire.samples_report(task.samples, task.merges))
            case Failed():
                remedy = message.remedy or None
                raise Fault(
                    FaultCode(message.code), message.message, remedy=remedy, **message.metadata
                )
            case Ready() | UnslothFailed() | Finished():
                raise Fault(FaultCode.INTERNAL_UNEXPECTED, kind=type(message).__name__)
            case _:
                assert_never(message)

    def _tracking_of(self, plan: TrainPlan | None, from_step: int) -> Tracking | None:
        assert plan is not None, "what trains has a plan"
        begin = tracker_for(self._tracking, subject_of(plan, from_step=from_step))
        return Tracking(begin) if begin else None

    async def _pass_finish_on(self, child: Child, session: LeaseSession) -> None:
        await session.finish_requested.wait()
        await child.send(Finish())

    async def _prepare(self) -> None:
        # Startup errors surface on the lease that needs the process.
        with suppress(Fault):
            await self._ready_child()

    async def _ready_child(self) -> Child:
        async with self._child_lock:
            if self._child is not None and self._child.is_stuck:
                # Once more; it may have ended by now, or may end at this.
                await self._child.kill()
            if self._child is None or not self._child.alive:
                if not await self._claim.wait(seconds=END_SECONDS_MAX):
                    raise Fault(FaultCode.RUNTIME_PROCESS_STUCK, stuck_text(None))
                terms = Terms(tier=self._config.node_tier, unsloth=self._config.unsloth)
                self._child = await Child.start(
                    self._config.work_dir / "logs" / "child.log",
                    terms,
                    inherited=self._claim.descriptors,
                )
                await self._child.ready()
            return self._child

    async def _let_go(self, session: LeaseSession) -> None:
        """Free the device unless the child is idle with a model, and delete what the run left."""
        self._bases.let_go()
        if self._child is not None and not (self._child.idle and self._child.reusable):
            await self.close()
        # The next lease should not wait for a child to load its libraries.
        self._preparing = asyncio.create_task(self._prepare())
        await asyncio.to_thread(shutil.rmtree, self._run_folder(session.lease), ignore_errors=True)
        await asyncio.to_thread(forget_old_logs, self._config.work_dir / "logs")

    async def _fetch(self, session: LeaseSession, folder: Path) -> Files:
        task, renewed = session.lease.train, InputUrls(session).renewed
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        datasets = [
            await _fetch_dataset(dataset, folder / "datasets" / str(index), renewed)
            for index, dataset in enumerate(task.datasets)
        ]
        validation = None
        if task.HasField("validation"):
            validation = await _fetch_dataset(task.validation, folder / "validation", renewed)
        checkpoints = await _fetch_checkpoints(session, folder / "resume", renewed)
        # Last of all: it may take longer than the signed URLs of the others live.
        return Files(
            base=await self._fetch_base(session, task.base, renewed),
            datasets=tuple(datasets),
            validation=validation,
            checkpoints=checkpoints,
        )

    async def _fetch_base(
        self, session: LeaseSession, base: work_pb2.BaseModelInput, renewed: transfer.Refresh
    ) -> Base:
        folder = await self._bases.fetch(session, base, renewed)
        # A branch may be at another commit tomorrow.
        commit = f"{base.model_id}@{folder.name}"
        return Base(
            base_model=base.base_model,
            model_id=base.model_id,
            revision=base.revision,
            folder=str(folder),
            digest=digest_of(base.files) if base.files else commit,
        )

    def _run_folder(self, lease: work_pb2.Lease) -> Path:
        run = RunName.parse(lease.run)
        return self._config.work_dir / "runs" / f"{run.project}.{run.run}"

    def _log_path(self, lease: work_pb2.Lease) -> Path:
        run = RunName.parse(lease.run)
        return self._config.work_dir / "logs" / f"{run.project}.{run.run}.{lease.attempt}.log"


@dataclass(slots=True, kw_only=True)
class _Task:
    """A lease under way: its stage and its latest figures."""

    session: LeaseSession
    folder: Path
    stage: Stage = Stage.PROVISIONING
    metrics: run_pb2.RunMetrics | None = None
    samples: list[run_pb2.Sample] = field(default_factory=list)
    plan: TrainPlan | None = None
    tracking: Tracking | None = None
    merges: list[run_pb2.RunMerge] = field(default_factory=list)

    def note(self, metrics: run_pb2.RunMetrics) -> None:
        """Report the figures of a step to all who get them."""
        self.metrics = metrics
        self.session.report(work_service_pb2.TaskReport(metrics=metrics))
        if self.tracking is not None:
            self.tracking.add(metrics)

    def enter(self, stage: Stage) -> None:
        """Report to the scheduler that a stage began."""
        self.stage = stage
        self.session.report(wire.stage_report(stage.value))


def forget_old_logs(folder: Path) -> int:
    """Delete the logs of runs but the latest; how many went."""
    logs = sorted(folder.glob(LOG_PATTERN), key=lambda path: (path.stat().st_mtime, path.name))
    for path in logs[:-LOGS_KEPT_COUNT]:
        path.unlink(missing_ok=True)
    return len(logs[:-LOGS_KEPT_COUNT])


def unforeseen(error: Exception) -> Fault:
    """The fault of an error that nothing else caught; a full disk can strike anywhere."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Fault(FaultCode.STORAGE_FULL, "The node's disk is full.")
    return Fault(FaultCode.INTERNAL_UNEXPECTED, kind=type(error).__name__)


async def _fetch_dataset(
    dataset: work_pb2.DatasetInput, folder: Path, renewed: transfer.Refresh
) -> Path:
    """The local file of a dataset.

    Raises:
        Fault: DATASET_DELETED when its file was deleted, and what a download may raise.
    """
    try:
        return (await transfer.download([dataset.file], folder, refresh=renewed))[0]
    except Fault as fault:
        if fault.code is not FaultCode.STORAGE_OBJECT_NOT_FOUND:
            raise
        raise Fault(
            FaultCode.DATASET_DELETED,
            f"{dataset.name} was deleted after the run was submitted.",
            dataset=dataset.name,
        ) from fault


async def _fetch_checkpoints(
    session: LeaseSession, folder: Path, renewed: transfer.Refresh | None
) -> tuple[Path, ...]:
    """The folders of the checkpoints to go on from, the newest first.

    One that the store has lost or spoilt costs its steps, and no attempt; the user gets a warning.
    """
    task, found = session.lease.train, list[Path]()
    given = [task.checkpoint, *(each.files for each in task.earlier_checkpoints)]
    for number, files in enumerate(given):
        try:
            paths = await transfer.download(files, folder / str(number), refresh=renewed)
        except Fault as fault:
            if fault.code not in LOST_CODES:
                raise
            log.warning("checkpoint_lost", number=number, code=fault.code.value, why=fault.message)
            lost = Warned(code=fault.code.value, message=f"{LOST_TEXT}: {fault.message}")
            session.report(work_service_pb2.TaskReport(warning=wire.warning(lost)))
            continue
        if paths:
            found.append(paths[0].parent)
    return tuple(found)


def _with_stage(fault: Fault, stage: Stage) -> Fault:
    if fault.stage is None:
        fault.stage = stage
    return fault
