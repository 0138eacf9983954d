"""What guards a run, with a real training child: heat, an end before the beginning, and reports."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.support.training import a_plan, changed
from trainer.child import Child
from trainer.domain.plan import TrainPlan
from trainer.domain.temperature import COOLING_TEXT, Action, Limits, Thermostat
from trainer.pipe import Finish, Finished, FromChild, StageBegan, StepTaken, Warned
from trainer.thermal import ThermalGuard
from trainer.trackers import TensorBoard
from trainer.tracking import AttemptEnd, Tracking, subject_of
from trainer.wire import metrics
from tunesmith.api.work.v1 import work_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

STEPS = 25
# A step takes some 30 ms; on a busy machine half a second.
SILENCE_SECONDS = 3.0


class Reports:
    """The agent's session, as far as the guard needs it."""

    def __init__(self) -> None:
        self.reports: list[work_service_pb2.TaskReport] = []
        self.temperature_celsius: float | None = None

    def report(self, report: work_service_pb2.TaskReport) -> None:
        self.reports.append(report)


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    one = await Child.start(tmp_path / "child.log")
    await one.ready()
    yield one
    await one.kill()


def a_run(folder: Path, name: str, **changes: Any) -> TrainPlan:
    (work := folder / name).mkdir()
    return changed(
        a_plan(max_steps=STEPS, adapter_dropout=0.1, **changes),
        run=f"projects/local/runs/{name}",
        work_folder=str(work),
        log_path=str(folder / f"{name}.log"),
    )


def losses(messages: list[FromChild]) -> list[tuple[int, float]]:
    return [(m.step, m.loss) for m in messages if isinstance(m, StepTaken)]


async def test_a_hot_gpu_halts_training_and_it_goes_on_at_the_very_next_step(
    child: Child, tmp_path: Path
) -> None:
    """002-14, 002-15: no step is lost or taken twice, and the curve is that of a cool run."""
    cool = [message async for message in child.train(a_run(tmp_path, "cool"))]
    session, readings = Reports(), iter([92.0, 85.0, 79.0])
    guard = ThermalGuard(
        session,  # type: ignore[arg-type]
        child,
        Thermostat(limits=Limits()),
        lambda: next(readings),
    )
    hot: list[FromChild] = []
    messages = child.train(a_run(tmp_path, "hot"))
    while len(losses(hot)) < 5:
        hot.append(await anext(messages))
    assert await guard.run_once() is Action.PAUSE
    # The step under way comes to its end, and then nothing more is heard.
    coming = asyncio.ensure_future(anext(messages))
    while (await asyncio.wait({coming}, timeout=SILENCE_SECONDS))[0]:
        hot.append(coming.result())
        coming = asyncio.ensure_future(anext(messages))
    halted_at = len(losses(hot))
    assert halted_at < STEPS
    assert await guard.run_once() is Action.NONE
    assert not coming.done()
    assert await guard.run_once() is Action.RESUME
    hot.append(await coming)
    hot += [message async for message in messages]
    assert losses(hot) == losses(cool)
    (warning,) = [one.warning for one in session.reports if one.HasField("warning")]
    assert warning.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    assert warning.message == COOLING_TEXT == "Waiting for GPU to cool…"
    paused = [one.clock_paused.paused for one in session.reports if one.HasField("clock_paused")]
    assert paused == [True, False]


async def test_saving_before_training_writes_the_initial_adapter_with_a_warning(
    child: Child, tmp_path: Path
) -> None:
    """002-23"""
    said: list[FromChild] = []
    async for message in child.train(a_run(tmp_path, "early")):
        said.append(message)
        if message == StageBegan(stage="initialization"):
            await child.send(Finish())
    assert not losses(said)
    (warned,) = [one for one in said if isinstance(one, Warned)]
    assert warned.code == "EXPORT_ADAPTER_UNTRAINED"
    assert warned.message == (
        "Trainer.save() called before train() — writing init-weight LoRA adapter to adapter"
    )
    assert isinstance(said[-1], Finished)
    weights = load_file(Path(said[-1].adapter_folder) / "adapter_model.safetensors")
    assert all(not tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    assert any(tensor.any() for name, tensor in weights.items() if "lora_A" in name)


async def test_a_runs_figures_lie_in_tensorboards_files(child: Child, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tracking` is not installed")
    from tensorboardX.proto.event_pb2 import Event

    plan = a_run(tmp_path, "told")
    tracking = Tracking(lambda: TensorBoard(tmp_path / "tb", subject_of(plan, from_step=0)))
    said = []
    async for message in child.train(plan):
        said.append(message)
        if isinstance(message, StepTaken):
            tracking.add(metrics(message))
    tracking.end(AttemptEnd.COMPLETED)
    assert await asyncio.to_thread(tracking.wait, seconds=30.0)
    (path,) = (tmp_path / "tb" / "local" / "told").iterdir()
    events = [Event.FromString(record) for record in _records(path)]
    values = [(one.step, value) for one in events for value in one.summary.value]
    told = [(at, value.simple_value) for at, value in values if value.tag == "train/loss"]
    assert [at for at, _ in told] == [at for at, _ in losses(said)]
    assert [loss for _, loss in told] == pytest.approx([loss for _, loss in losses(said)])
    assert {value.tag for _, value in values} > {
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/real_token_ratio",
        "train/memory_bytes",
        "train/remaining_seconds",
    }


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + size]
        at += 12 + size + 4
