"""The agent's parts with fakes of session and child: thermal guard, archive, the child's world."""

import asyncio
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lexicon.faults import Fault, FaultCode
from tests.support.child_lines import a_process
from tests.support.training import a_plan
from trainer.child import Child, child_environment
from trainer.domain.temperature import COOLING_TEXT, Action, Limits, Thermostat
from trainer.node import alone_in
from trainer.outputs import CheckpointUploader, write_zip
from trainer.pipe import (
    CheckpointWritten,
    Failed,
    Finished,
    Pause,
    Resume,
    Terms,
    Warned,
    from_child,
    to_child,
)
from trainer.pipe import StageBegan as Began
from trainer.thermal import UNREADABLE_MAX, ThermalGuard, limits
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_service_pb2


class FakeSession:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.temperature_celsius: float | None = None

    def report(self, report: Any) -> None:
        self.reports.append(report)

    def of_kind(self, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in self.reports if r.WhichOneof("report") == kind]


class FakeChild:
    """Keeps what is sent, and whether it was ended."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.killed = False

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def kill(self) -> None:
        self.killed = True


def a_guard(*readings: float | None) -> tuple[ThermalGuard, FakeSession, FakeChild]:
    session, child, given = FakeSession(), FakeChild(), iter(readings)
    guard = ThermalGuard(
        session,  # type: ignore[arg-type]
        child,  # type: ignore[arg-type]
        Thermostat(limits=Limits()),
        lambda: next(given),
    )
    return guard, session, child


async def test_hot_gpu_pauses_training_and_the_clock_and_both_go_on_when_it_has_cooled() -> None:
    """002-14, 002-15, A7"""
    guard, session, child = a_guard(91.0, 79.0)
    assert [await guard.run_once(), await guard.run_once()] == [Action.PAUSE, Action.RESUME]
    assert child.sent == [Pause(), Resume()]
    assert [clock.paused for clock in session.of_kind("clock_paused")] == [True, False]
    (warning,) = session.of_kind("warning")
    assert warning.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    assert warning.message == COOLING_TEXT == "Waiting for GPU to cool…"


async def test_clock_that_starts_while_training_waits_for_the_gpu_is_paused_at_once() -> None:
    """002-14, A7: nobody pays for a pause that began before the first step."""
    guard, session, _ = a_guard(91.0, 85.0, 79.0, 79.0)
    await guard.run_once()
    guard.training_began()
    assert [clock.paused for clock in session.of_kind("clock_paused")] == [True, True]
    assert [await guard.run_once(), await guard.run_once()] == [Action.NONE, Action.RESUME]
    guard.training_began()
    assert [clock.paused for clock in session.of_kind("clock_paused")] == [True, True, False]


async def test_gpu_that_is_too_hot_ends_the_child() -> None:
    """A14"""
    guard, _, child = a_guard(96.0)
    assert await guard.run_once() is Action.ABORT
    assert child.killed
    assert guard.fault is not None
    assert guard.fault.code is FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL


async def test_heartbeats_carry_the_temperature() -> None:
    guard, session, _ = a_guard(55.5)
    await guard.run_once()
    assert session.temperature_celsius == 55.5


async def test_run_that_waits_for_a_sensor_that_is_gone_ends() -> None:
    """002-15: a GPU that fell off its bus while it cooled never tells that it has cooled."""
    guard, _, child = a_guard(91.0, *[None] * (UNREADABLE_MAX - 1), 85.0, *[None] * UNREADABLE_MAX)
    for _ in range(2 * UNREADABLE_MAX):
        assert await guard.run_once() is not Action.ABORT
    assert await guard.run_once() is Action.ABORT
    assert child.killed
    assert guard.fault is not None
    assert guard.fault.retryable


async def test_machine_without_a_reading_is_left_alone() -> None:
    guard, session, child = a_guard(None)
    assert await guard.run_once() is Action.NONE
    assert not session.reports
    assert not child.sent


def test_limits_of_a_run_win_over_the_defaults() -> None:
    """002-15"""
    training = spec_pb2.TrainingConfig()
    training.temperature.pause_celsius = 70
    assert limits(training) == Limits(pause_celsius=70)


@pytest.mark.parametrize(
    ("said", "reusable"),
    [
        ([Failed(code="DATASET_EMPTY", message="", stage="", metadata={})], True),
        ([Failed(code="RUNTIME_GPU_OOM", message="", stage="", metadata={})], True),
        ([Failed(code="RUNTIME_TRAINING_FAILED", message="", stage="", metadata={})], False),
        ([Failed(code="INTERNAL_UNEXPECTED", message="", stage="", metadata={})], False),
        ([Finished(adapter_folder="a", proof_path=None, samples=(), cached_models=("m",))], True),
        (
            [
                Warned(code="RUNTIME_SAMPLES_FAILED", message=""),
                Finished(adapter_folder="a", proof_path=None, samples=(), cached_models=()),
            ],
            False,
        ),
    ],
)
async def test_a_process_whose_device_may_be_broken_gets_no_other_run(
    said: list[Any], reusable: bool
) -> None:
    """An assertion on a GPU makes every later call of the process fail, in whoever's run."""
    child = Child(a_process(from_child, *said)[0], Terms())
    assert [message async for message in child.train(a_plan())] == said
    assert child.idle
    assert child.reusable is reusable


def test_same_files_give_the_same_archive(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.json"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "b.safetensors", tmp_path / "a.json"]
    for target in ("one.zip", "two.zip"):
        write_zip(files, tmp_path / target)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["a.json", "b.safetensors"]


def test_child_gets_a_short_list_of_harmless_names() -> None:
    given = {
        "PATH": "/bin",
        "TUNESMITH_NODE_TOKEN": "secret",
        "HF_TOKEN": "hf_secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OMP_NUM_THREADS": "2",
    }
    environment = child_environment(given)
    assert environment["PATH"] == "/bin"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert not [value for value in environment.values() if "secret" in value]
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_threads_of_the_child_sleep_while_they_wait_unless_the_operator_says_otherwise() -> None:
    """On cores that are shared, threads that spin keep each other from running."""
    assert child_environment({})["OMP_WAIT_POLICY"] == "passive"
    assert child_environment({"OMP_WAIT_POLICY": "active"})["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize("message", [Pause(), Resume()])
def test_what_the_agent_says_is_one_line_and_read_back(message: Any) -> None:
    line = msgspec.json.encode(message)
    assert b"\n" not in line
    assert to_child.decode(line) == message


def test_what_the_child_says_is_read_back() -> None:
    said = Began(stage="saving")
    assert from_child.decode(msgspec.json.encode(said)) == said


class FakeStore(FakeSession):
    """A session whose uploads wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def sign_outputs(self, files: Any) -> list[Any]:
        self.asked.set()
        await self.let_go.wait()
        raise Fault(FaultCode.RUN_LEASE_LOST)


def a_checkpoint(root: Path, step: int) -> CheckpointWritten:
    folder = root / f"step-{step:08d}"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(b"state")
    return CheckpointWritten(step=step, folder=str(folder))


def steps_in(root: Path) -> list[str]:
    return sorted(path.name[-1] for path in root.iterdir())


async def test_surplus_checkpoints_go_while_one_is_uploaded_but_not_that_one(
    tmp_path: Path,
) -> None:
    """A slow store must not fill the node's disk, nor lose the file under its hands."""
    session = FakeStore()
    uploader = CheckpointUploader(session, keep_count=1)  # type: ignore[arg-type]
    uploader.add(a_checkpoint(tmp_path, 1))
    upload = asyncio.create_task(uploader.upload_newest())
    await session.asked.wait()
    for step in range(2, 7):
        uploader.add(a_checkpoint(tmp_path, step))
    assert await uploader.prune() == 3
    assert steps_in(tmp_path) == ["1", "5", "6"]
    session.let_go.set()
    assert not await upload
    assert await uploader.prune() == 1
    assert steps_in(tmp_path) == ["5", "6"]


class SlowStore(FakeSession):
    """A session whose files go to a store that takes them when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.url = ""

    async def sign_outputs(self, files: Any) -> list[Any]:
        signed = work_service_pb2.SignedOutput(url=self.url, uri="object://runs/r/1/f")
        return [signed] * len(files)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"state")
        await self.let_go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()


async def test_a_stored_checkpoint_tells_how_long_it_was_on_its_way(tmp_path: Path) -> None:
    """A6: what was trained meanwhile is not in it; and a failed attempt can wait for it."""
    session, now = SlowStore(), [10.0]
    uploader = CheckpointUploader(
        session,  # type: ignore[arg-type]
        keep_count=1,
        clock=lambda: now[0],
    )
    async with await asyncio.start_server(session.take, "127.0.0.1", 0) as server:
        session.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/objects/f"
        uploader.add(a_checkpoint(tmp_path, 1))
        running = asyncio.create_task(uploader.run())
        await uploader.settle(seconds=0.01)
        behind = [uploader.is_behind]
        now[0] = 130.5
        session.let_go.set()
        await uploader.settle(seconds=10.0)
        behind.append(uploader.is_behind)
        running.cancel()
    assert behind == [True, False]
    (stored,) = session.of_kind("checkpoint")
    assert (stored.step, stored.storing_millis) == (1, 120_500)


class TwoStores(FakeSession):
    """A session whose checkpoints go to a store that may be slow, and whose adapter is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.url = ""
        self.asked: list[str] = []

    async def sign_outputs(self, files: Any) -> list[Any]:
        self.asked += [file.path.partition("/")[0] for file in files]
        signed = work_service_pb2.SignedOutput(url=self.url, uri="object://runs/r/1/f")
        return [signed] * len(files)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readuntil(b"e"):
            await self.let_go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

    @property
    def clock(self) -> list[bool]:
        """Whether it was paused, change by change."""
        return [change.paused for change in self.of_kind("clock_paused")]


@asynccontextmanager
async def an_uploader(root: Path) -> AsyncIterator[tuple[CheckpointUploader, TwoStores]]:
    """An uploader whose checkpoint of step 1 is on its way to a store that waits."""
    session = TwoStores()
    uploader = CheckpointUploader(session, keep_count=1)  # type: ignore[arg-type]
    async with await asyncio.start_server(session.take, "127.0.0.1", 0) as server:
        session.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/objects/f"
        uploader.add(a_checkpoint(root, 1))
        yield uploader, session


async def test_the_last_checkpoint_is_stored_before_the_adapter_and_free(tmp_path: Path) -> None:
    """A7: a node that is lost while the adapter is stored takes no step along."""
    async with an_uploader(tmp_path) as (uploader, session), uploader:
        session.let_go.set()
        async with uploader.handed_over():
            assert [stored.step for stored in session.of_kind("checkpoint")] == [1]
            assert session.clock == [True, False]
    assert session.clock == [True, False]


async def test_a_finished_adapter_waits_for_the_checkpoint_no_longer_than_it_must(
    tmp_path: Path,
) -> None:
    """A7: both are then on their way beside each other, and nobody pays for what that takes."""
    async with (
        an_uploader(tmp_path) as (uploader, session),
        uploader,
        uploader.handed_over(seconds=0.01),
    ):
        assert not session.of_kind("checkpoint")
        assert session.clock == [True]
        session.let_go.set()
        await uploader.settle(seconds=10.0)
        assert [stored.step for stored in session.of_kind("checkpoint")] == [1]
    assert session.clock[0]


async def test_an_adapter_that_is_stored_first_ends_the_wait(tmp_path: Path) -> None:
    """What it was for is in the store: the node must be free."""
    async with an_uploader(tmp_path) as (uploader, session):
        async with asyncio.timeout(10.0), uploader, uploader.handed_over(seconds=0.01):
            pass
        assert not session.of_kind("checkpoint")
        assert session.clock == [True]


async def test_an_adapter_that_cannot_be_stored_leaves_the_checkpoint_to_the_next_attempt(
    tmp_path: Path,
) -> None:
    """A6: the next attempt, on whichever node, has no step to repeat."""

    async def fail(uploader: CheckpointUploader, session: TwoStores) -> None:
        async with uploader, uploader.handed_over(seconds=0.01):
            session.let_go.set()
            raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE)

    async with an_uploader(tmp_path) as (uploader, session):
        with pytest.raises(Fault) as caught:
            await fail(uploader, session)
    assert caught.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE
    assert [stored.step for stored in session.of_kind("checkpoint")] == [1]


async def test_without_a_checkpoint_on_its_way_nothing_waits_and_nothing_is_told() -> None:
    session = FakeSession()
    async with (
        CheckpointUploader(session, keep_count=1) as uploader,  # type: ignore[arg-type]
        uploader.handed_over(),
    ):
        pass
    assert not session.reports


async def test_a_checkpoint_that_is_gone_costs_its_upload_and_no_more(tmp_path: Path) -> None:
    session = FakeStore()
    uploader = CheckpointUploader(session, keep_count=1)  # type: ignore[arg-type]
    gone = a_checkpoint(tmp_path, 1)
    shutil.rmtree(gone.folder)
    uploader.add(gone)
    assert not await uploader.upload_newest()
    assert not session.reports


def test_second_agent_in_a_folder_is_refused(tmp_path: Path) -> None:
    """Else the second would sweep away the runs of the first when it starts."""
    with alone_in(tmp_path):
        with pytest.raises(Fault) as caught, alone_in(tmp_path):
            pass
        assert caught.value.code is FaultCode.CONFIG_INVALID
    with alone_in(tmp_path):
        pass
