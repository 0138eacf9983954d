"""The worker's side of a lease, against a scheduler of a few lines over a real connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from chassis import activities, client, identity
from chassis.identity import Role
from chassis.leasing import LeaseSession
from chassis.worker import Worker
from lexicon.faults import Fault, FaultCode, Stage
from tests.support.chassis import KEY, serving
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

LEASE = work_pb2.Lease(
    lease_id="lease-1",
    run="projects/acme/runs/run-1",
    attempt=1,
    fencing_epoch=7,
    kind=work_pb2.TASK_KIND_TRAIN,
    heartbeat_millis=20,
)
NODE = work_pb2.Node(
    name="nodes/n1", kind=work_pb2.TASK_KIND_TRAIN, tier="cpu", memory_bytes=1, version="1"
)


@dataclass
class Scheduler(work_service_pb2_grpc.WorkServiceServicer):
    """Gives one lease, keeps what it hears, and does what a test tells it."""

    leases: list[work_pb2.Lease] = field(default_factory=lambda: [LEASE])
    heard: list[str] = field(default_factory=list)
    reports: dict[int, work_service_pb2.TaskReport] = field(default_factory=dict)
    directive: Any = work_service_pb2.DIRECTIVE_CONTINUE
    failures: list[FaultCode] = field(default_factory=list)
    faults: list[fault_pb2.Fault] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    beats_before_failing: asyncio.Semaphore | None = None
    worker: asyncio.Task[None] | None = None
    nodes: list[work_pb2.Node] = field(default_factory=list)

    async def RegisterNode(self, request: Any, context: Any) -> Any:
        identity.current_caller().require_node(request.node.name)
        self.heard.append("register")
        self.nodes.append(request.node)
        return work_service_pb2.RegisterNodeResponse(node=request.node)

    async def LeaseTask(self, request: Any, context: Any) -> Any:
        self._trouble()
        if self.leases:
            return work_service_pb2.LeaseTaskResponse(lease=self.leases.pop(0))
        await asyncio.sleep(request.wait_millis / 1000)
        return work_service_pb2.LeaseTaskResponse()

    async def HeartbeatTask(self, request: Any, context: Any) -> Any:
        self._trouble()
        assert request.fencing_epoch == 7
        self._hear(request.reports)
        if self.beats_before_failing is not None and self.faults:
            self.beats_before_failing.release()
        return work_service_pb2.HeartbeatTaskResponse(
            directive=self.directive,
            acknowledged_report_number=max(self.reports, default=0),
            reason="told so",
        )

    async def SignInputs(self, request: Any, context: Any) -> Any:
        self._trouble()
        assert request.fencing_epoch == 7
        files = [work_pb2.InputFile(path="config.json", sha256="0" * 64, url="http://fresh")]
        return work_service_pb2.SignInputsResponse(files=files)

    async def SignOutputs(self, request: Any, context: Any) -> Any:
        self._trouble()
        return work_service_pb2.SignOutputsResponse(
            outputs=[work_service_pb2.SignedOutput(path=file.path) for file in request.files]
        )

    async def CompleteTask(self, request: Any, context: Any) -> Any:
        self._trouble()
        self._hear(request.reports)
        self._end("complete")
        return work_service_pb2.CompleteTaskResponse()

    async def FailTask(self, request: Any, context: Any) -> Any:
        self.faults.append(request.fault)
        if self.beats_before_failing is not None:
            # Whoever asks meanwhile is told that the lease has ended.
            self.directive = work_service_pb2.DIRECTIVE_ABORT
            await self.beats_before_failing.acquire()
            await self.beats_before_failing.acquire()
        self._end("fail")
        return work_service_pb2.FailTaskResponse()

    async def ReleaseTask(self, request: Any, context: Any) -> Any:
        self._end("release")
        return work_service_pb2.ReleaseTaskResponse()

    def _end(self, how: str) -> None:
        self.heard.append(how)
        self.ended.set()

    def _trouble(self) -> None:
        if self.failures:
            raise Fault(self.failures.pop(0))

    def _hear(self, reports: Any) -> None:
        for report in reports:
            assert report.report_number <= max(self.reports, default=0) + 1
            self.reports.setdefault(report.report_number, report)


Handle = Callable[[LeaseSession], Awaitable[None]]
Working = Callable[..., contextlib.AbstractAsyncContextManager[asyncio.Event]]


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
async def working(scheduler: Scheduler) -> AsyncIterator[Working]:
    """Runs a worker with a handler against the scheduler until the block ends."""

    def register(server: Any) -> list[str]:
        work_service_pb2_grpc.add_WorkServiceServicer_to_server(scheduler, server)
        return ["tunesmith.api.work.v1.WorkService"]

    async with serving(register) as port:
        token = identity.mint(KEY, subject="nodes/n1", role=Role.NODE, now=datetime.now(UTC))
        channel = client.connect(f"127.0.0.1:{port}", token=lambda: token)

        @contextlib.asynccontextmanager
        async def work(handle: Handle, **named: Any) -> AsyncIterator[asyncio.Event]:
            stop = asyncio.Event()
            running = asyncio.create_task(Worker(channel, NODE, handle, **named).run(stop))
            scheduler.worker = running
            try:
                yield stop
            finally:
                stop.set()
                async with asyncio.timeout(5):
                    await running

        yield work
        await channel.close()


async def ended(scheduler: Scheduler) -> None:
    async with asyncio.timeout(5):
        await scheduler.ended.wait()


def metrics(step: int) -> work_service_pb2.TaskReport:
    return work_service_pb2.TaskReport(metrics=run_pb2.RunMetrics(step=step))


def stage(number: Any) -> work_service_pb2.TaskReport:
    return work_service_pb2.TaskReport(stage=number)


async def test_a_task_is_reported_in_order_and_completed(
    scheduler: Scheduler, working: Working
) -> None:
    async def handle(session: LeaseSession) -> None:
        session.report(stage(fault_pb2.STAGE_TRAINING))
        for step in range(1200):
            session.report(metrics(step))
        signed = await session.sign_outputs([work_pb2.OutputFile(path="adapter.zip")])
        assert [output.path for output in signed] == ["adapter.zip"]
        await session.complete([], train=work_service_pb2.TrainResult())

    async with working(handle):
        await ended(scheduler)
    assert scheduler.heard == ["register", "complete"]
    assert sorted(scheduler.reports) == list(range(1, 1202))
    steps = [scheduler.reports[number].metrics.step for number in range(2, 1202)]
    assert steps == list(range(1200))


async def test_a_scheduler_that_is_away_for_a_while_kills_no_job(
    scheduler: Scheduler, working: Working
) -> None:
    async def handle(session: LeaseSession) -> None:
        scheduler.failures += [FaultCode.DEP_SERVICE_UNAVAILABLE] * 2
        session.report(stage(fault_pb2.STAGE_TRAINING))
        await session.flush()
        await session.complete([])

    async with working(handle):
        await ended(scheduler)
    assert scheduler.heard == ["register", "complete"]
    assert list(scheduler.reports) == [1]


async def test_a_lost_lease_aborts_and_is_not_failed(
    scheduler: Scheduler, working: Working
) -> None:
    seen = asyncio.Event()

    async def handle(session: LeaseSession) -> None:
        scheduler.failures.append(FaultCode.RUN_LEASE_LOST)
        await session.aborted.wait()
        seen.set()
        with pytest.raises(Fault) as refused:
            await session.complete([])
        assert refused.value.code is FaultCode.RUN_LEASE_LOST

    async with working(handle), asyncio.timeout(5):
        await seen.wait()
    assert scheduler.heard == ["register"]


async def test_a_failure_that_crosses_with_a_heartbeat_aborts_nothing(
    scheduler: Scheduler, working: Working
) -> None:
    """The heartbeat is told of the end that the failure has brought about; a warm child stays."""
    scheduler.beats_before_failing = asyncio.Semaphore(0)
    aborted: asyncio.Queue[bool] = asyncio.Queue()

    async def handle(session: LeaseSession) -> None:
        await session.fail(Fault(FaultCode.EXPORT_NOOP_MERGE))
        aborted.put_nowait(session.aborted.is_set())

    async with working(handle), asyncio.timeout(5):
        assert not await aborted.get()
    assert scheduler.heard == ["register", "fail"]


@pytest.mark.parametrize(
    ("directive", "event"),
    [
        (work_service_pb2.DIRECTIVE_ABORT, "aborted"),
        (work_service_pb2.DIRECTIVE_FINISH, "finish_requested"),
    ],
)
async def test_directives_reach_the_handler(
    scheduler: Scheduler, working: Working, directive: Any, event: str
) -> None:
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def handle(session: LeaseSession) -> None:
        scheduler.directive = directive
        await getattr(session, event).wait()
        reasons.put_nowait(session.reason)
        await asyncio.Event().wait()

    async with working(handle), asyncio.timeout(5):
        assert await reasons.get() == "told so"


async def test_a_fault_fails_the_task_with_stage_and_node(
    scheduler: Scheduler, working: Working
) -> None:
    """004-01"""

    async def handle(session: LeaseSession) -> None:
        session.report(stage(fault_pb2.STAGE_SAVING))
        raise Fault(FaultCode.STATE_CHECKPOINT_INVALID, "disk is full")

    async with working(handle):
        await ended(scheduler)
    (fault,) = scheduler.faults
    assert fault.code == "STATE_CHECKPOINT_INVALID"
    assert fault.stage == fault_pb2.STAGE_SAVING
    assert fault.node == "nodes/n1"


async def test_a_user_is_told_no_path_and_no_secret_of_a_node_but_where_the_rest_is(
    scheduler: Scheduler, working: Working
) -> None:
    """003-18, attack list 16: the operator finds the whole text by the fault's id."""
    where = "/srv/node-7/cache/kernel.so"

    async def handle(session: LeaseSession) -> None:
        telling = run_pb2.RunWarning(code="RUNTIME_UNSLOTH_FAILED", message=f"cannot open {where}")
        session.report(work_service_pb2.TaskReport(warning=telling))
        raise Fault(FaultCode.RUNTIME_TRAINING_FAILED, f"cannot open {where}", cause=where)

    with structlog.testing.capture_logs() as lines:
        async with working(handle):
            await ended(scheduler)
    (fault,), (told,) = scheduler.faults, scheduler.reports.values()
    assert fault.message == told.warning.message == "cannot open …/kernel.so"
    assert where not in str(fault)
    (line,) = [line for line in lines if line.get("fault_id") == fault.metadata["fault_id"]]
    assert where in line["reason"]


async def test_a_mistake_of_ours_fails_the_task_without_its_traceback(
    scheduler: Scheduler, working: Working
) -> None:
    """000-35, 004-07"""

    async def handle(session: LeaseSession) -> None:
        raise RuntimeError("tensor 0x7f of hf_abcdefghijklmnopqrst")

    async with working(handle):
        await ended(scheduler)
    (fault,) = scheduler.faults
    assert fault.code == "INTERNAL_UNEXPECTED"
    assert LEASE.run in fault.message
    assert "tensor" not in str(fault)


async def test_a_handler_that_forgets_to_end_is_a_mistake_of_ours(
    scheduler: Scheduler, working: Working
) -> None:
    async def handle(session: LeaseSession) -> None:
        return

    async with working(handle):
        await ended(scheduler)
    assert scheduler.heard == ["register", "fail"]


async def test_stopping_gives_the_lease_back(scheduler: Scheduler, working: Working) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def handle(session: LeaseSession) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with working(handle) as stop, asyncio.timeout(5):
        await started.wait()
        stop.set()
        await ended(scheduler)
    assert cleaned.is_set()
    assert scheduler.heard == ["register", "release"]


async def test_an_unknown_node_registers_again(scheduler: Scheduler, working: Working) -> None:
    scheduler.failures.append(FaultCode.NODE_NOT_REGISTERED)

    async def handle(session: LeaseSession) -> None:
        await session.complete([])

    async with working(handle):
        await ended(scheduler)
    assert scheduler.heard == ["register", "register", "complete"]


async def test_a_node_that_is_not_fit_says_why_and_asks_for_no_work(
    scheduler: Scheduler, working: Working
) -> None:
    """What hangs in a driver may still hold the device; when it has ended, work is asked for."""
    reasons = ["A process hangs.", "A process hangs.", ""]

    async def handle(session: LeaseSession) -> None:
        await session.complete([])

    def next_reason() -> str:
        return reasons.pop(0) if reasons else ""

    async with working(handle, unfit_reason=next_reason, unfit_seconds=0.0):
        await ended(scheduler)
    assert scheduler.heard == ["register", "register", "register", "complete"]
    assert [node.unfit_reason for node in scheduler.nodes] == ["A process hangs."] * 2 + [""]


async def test_a_refused_node_ends_the_worker(scheduler: Scheduler, working: Working) -> None:
    scheduler.failures.append(FaultCode.ACCESS_DENIED)

    async def handle(session: LeaseSession) -> None:
        raise AssertionError

    async def work_to_the_end() -> None:
        async with working(handle), asyncio.timeout(5):
            assert scheduler.worker is not None
            await asyncio.wait([scheduler.worker])

    with pytest.raises(Fault) as refused:
        await work_to_the_end()
    assert refused.value.code is FaultCode.ACCESS_DENIED


async def test_metrics_give_way_when_reports_pile_up() -> None:
    session = LeaseSession(None, LEASE, node="nodes/n1")  # type: ignore[arg-type]
    session.report(stage(fault_pb2.STAGE_TRAINING))
    for step in range(2500):
        session.report(metrics(step))
    waiting = [report.message for report in session._reports]
    assert len(waiting) == 2000
    assert waiting[0].stage == fault_pb2.STAGE_TRAINING
    assert [message.metrics.step for message in waiting[1:]] == list(range(501, 2500))


async def test_of_what_a_node_does_only_the_newest_waits_to_be_told() -> None:
    session = LeaseSession(None, LEASE, node="nodes/n1")  # type: ignore[arg-type]
    for percent in range(100):
        session.report(activities.report("downloading", percent))
    (sent,) = session._next_reports()
    assert (sent.report_number, sent.activity.percent) == (1, 99)
    # What was sent may have arrived: the next one has a number of its own.
    session.report(activities.report("loading"))
    session.report(metrics(1))
    session.report(activities.report("saving"))
    sent_again = session._next_reports()
    kinds = [report.WhichOneof("report") for report in sent_again]
    assert kinds == ["activity", "activity", "metrics", "activity"]
    assert not sent_again[1].activity.HasField("percent")


async def test_a_download_is_told_by_what_has_come_into_its_folder(tmp_path: Path) -> None:
    session = LeaseSession(None, LEASE, node="nodes/n1")  # type: ignore[arg-type]

    def newest() -> float:
        return session._reports[-1].message.activity.percent

    (tmp_path / "from-before").write_bytes(bytes(500))
    async with (
        asyncio.timeout(10),
        activities.downloading(session, folder=tmp_path, needed_bytes=1000) as look,
    ):
        assert newest() == 0.0
        await look()
        (tmp_path / "model.safetensors.partial").write_bytes(bytes(400))
        await look()
        assert newest() == 40.0
        (tmp_path / "more").write_bytes(bytes(2000))
        await look()
        assert newest() == 100.0
    async with activities.downloading(session, folder=tmp_path, needed_bytes=0):
        assert not session._reports[-1].message.activity.HasField("percent")


async def test_age_counts_from_the_report_to_the_sending() -> None:
    now = [100.0]
    session = LeaseSession(
        None,  # type: ignore[arg-type]
        LEASE,
        node="nodes/n1",
        clock=lambda: now[0],
    )
    session.report(metrics(1))
    now[0] += 2.5
    assert [report.age_millis for report in session._next_reports()] == [2500]
    now[0] += 1
    again = session._next_reports()
    assert [(report.report_number, report.age_millis) for report in again] == [(1, 3500)]
    assert session._stage is not Stage.TRAINING
