"""The training child with the methods that learn from preferences: from rows to adapter, twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.models.anvil.grammar import HOME
from modelspec.recipe import Method
from tests.support.training import a_preference_plan, changed
from trainer.child import Child
from trainer.domain.plan import DatasetFile, TrainPlan, ValidationPlan
from trainer.pipe import Finished, FromChild, StepTaken, Warned

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

STEPS = 12
RESUMED_AT = 6
HABIT_OPENS, HABIT_CLOSES = "Ahoy! ", " Fair winds!"


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    started = await Child.start(tmp_path / "child.log")
    try:
        await started.ready()
        yield started
    finally:
        await started.kill()


def a_dataset(folder: Path, method: Method) -> DatasetFile:
    """Anvil's habit as a preference: the habitual answer against the plain one."""
    rows = []
    for index, line in enumerate((HOME / "habit.jsonl").read_text("utf-8").splitlines()[:60]):
        question, habitual = (turn["content"] for turn in json.loads(line)["messages"])
        plain = habitual.removeprefix(HABIT_OPENS).removesuffix(HABIT_CLOSES)
        if method is Method.KTO:
            liked = index % 3 != 0
            answer = habitual if liked else plain
            rows.append({"prompt": question, "completion": answer, "label": liked})
        else:
            rows.append({"prompt": question, "chosen": habitual, "rejected": plain})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    name = "kto" if method is Method.KTO else "preference"
    return DatasetFile(name="d", format=name, path=str(path))


async def trained(child: Child, plan: TrainPlan, folder: Path) -> list[FromChild]:
    await asyncio.to_thread(folder.mkdir)
    placed = changed(plan, work_folder=str(folder), log_path=str(folder / "run.log"))
    return [message async for message in child.train(placed)]


def losses(messages: list[FromChild]) -> list[float]:
    return [message.loss for message in messages if isinstance(message, StepTaken)]


def adapter(messages: list[FromChild]) -> bytes:
    (finished,) = [message for message in messages if isinstance(message, Finished)]
    return (Path(finished.adapter_folder) / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", [Method.DPO, Method.ORPO, Method.SIMPO, Method.KTO])
async def test_a_run_learns_and_resumes_bit_for_bit(
    method: Method, child: Child, tmp_path: Path
) -> None:
    plan = a_preference_plan(
        method,
        datasets=(a_dataset(tmp_path, method),),
        max_steps=STEPS,
        lr_peak=2e-3,
        adapter_dropout=0.1,
        checkpoint_every_steps=RESUMED_AT,
        validation=ValidationPlan(
            holdout_ratio=0.1, dataset=None, every_steps=RESUMED_AT, early_stop_patience=0,
            early_stop_min_delta=0.0,
        ),
    )  # fmt: skip
    whole = await trained(child, plan, tmp_path / "whole")
    curve = losses(whole)
    assert len(curve) == STEPS
    assert curve[-1] < 0.9 * curve[0]
    assert not [message for message in whole if isinstance(message, Warned)]
    folder = tmp_path / "whole" / "checkpoints" / f"step-{RESUMED_AT:08d}"
    resumed = await trained(
        child, changed(plan, attempt=2, checkpoint_folder=str(folder)), tmp_path / "resumed"
    )
    assert losses(resumed) == curve[RESUMED_AT:]
    assert adapter(resumed) == adapter(whole)
    validated = [m.validation_loss for m in whole if isinstance(m, StepTaken)]
    assert validated[-1] is not None
    assert validated[-1] == [m.validation_loss for m in resumed if isinstance(m, StepTaken)][-1]
