"""One training child, several runs: the second is what it would be in a process of its own."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deploy.models.anvil.grammar import HOME
from tests.support.training import a_plan, changed
from trainer.child import Child
from trainer.domain.plan import TrainPlan
from trainer.pipe import CheckpointWritten, Failed, Finished, FromChild, StageBegan, StepTaken

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BASE = "tunesmith/anvil-3m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run said, and what lies on the disk after it."""

    messages: tuple[FromChild, ...]
    adapter_sha256: str = ""
    proof: str = ""

    @property
    def figures(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of every step."""
        return [(m.loss, m.grad_norm) for m in self.messages if isinstance(m, StepTaken)]


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    one = await Child.start(tmp_path / "child.log")
    yield one
    await one.kill()


def a_run(folder: Path, name: str, **changes: object) -> TrainPlan:
    """Four steps with dropout; the data with its hash, as the agent has it."""
    plan = a_plan(max_steps=4, adapter_dropout=0.1)
    habit = HOME / "habit.jsonl"
    digest = hashlib.sha256(habit.read_bytes()).hexdigest()
    work = folder / name
    work.mkdir()
    return changed(
        plan,
        run=f"projects/local/runs/{name}",
        datasets=(replace(plan.data.datasets[0], digest=digest),),
        work_folder=str(work),
        log_path=str(folder / f"{name}.log"),
        **changes,
    )


async def outcome(child: Child, plan: TrainPlan) -> Outcome:
    messages = tuple([message async for message in child.train(plan)])
    last = messages[-1]
    if not isinstance(last, Finished):
        return Outcome(messages=messages)
    weights = Path(last.adapter_folder) / "adapter_model.safetensors"
    assert last.proof_path is not None
    proof = load_file(last.proof_path)
    tables = b"".join(proof[name].tobytes() for name in sorted(proof))
    return Outcome(
        messages=messages,
        adapter_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        proof=hashlib.sha256(tables).hexdigest(),
    )


async def test_a_warm_run_is_bit_for_bit_a_cold_one(child: Child, tmp_path: Path) -> None:
    """001-24: after runs with another seed, another rank and gradient checkpointing."""
    await child.ready()
    await outcome(child, a_run(tmp_path, "seed", seed=7))
    other = replace(a_plan().build.adapter, rank=8, dropout=0.0)
    await outcome(child, a_run(tmp_path, "rank", adapter=other, gradient_checkpointing=True))
    between = await outcome(child, a_run(tmp_path, "between"))
    assert child.cached_models == (BASE,)
    cached_models = await outcome(child, a_run(tmp_path, "warm"))
    assert "is cached" in (tmp_path / "warm.log").read_text()
    fresh = await Child.start(tmp_path / "fresh.log")
    try:
        await fresh.ready()
        cold = await outcome(fresh, a_run(tmp_path, "cold"))
    finally:
        await fresh.kill()
    assert len(cold.figures) == 4
    assert cached_models.figures == between.figures == cold.figures
    assert cached_models.adapter_sha256 == between.adapter_sha256 == cold.adapter_sha256
    assert cached_models.proof == cold.proof


async def test_a_failed_run_leaves_nothing_warm_and_the_next_is_right(
    child: Child, tmp_path: Path
) -> None:
    """The learning rate makes the loss infinite halfway; the child goes on with another run."""
    await child.ready()
    good = await outcome(child, a_run(tmp_path, "good"))
    bad = await outcome(child, a_run(tmp_path, "bad", lr_peak=1e30, max_grad_norm=0.0))
    failed = bad.messages[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "RUNTIME_LOSS_NOT_FINITE"
    assert child.cached_models == ()
    again = await outcome(child, a_run(tmp_path, "again"))
    assert "is cached" not in (tmp_path / "again.log").read_text()
    assert again.adapter_sha256 == good.adapter_sha256


async def test_checkpoints_lie_where_the_run_is_told_to_work(child: Child, tmp_path: Path) -> None:
    """A warm run writes nothing into the folder of the run before."""
    await child.ready()
    for name in ("one", "two"):
        told = await outcome(child, a_run(tmp_path, name))
        written = [m.folder for m in told.messages if isinstance(m, CheckpointWritten)]
        assert written
        assert all(Path(folder).is_relative_to(tmp_path / name) for folder in written)
        assert [m.stage for m in told.messages if isinstance(m, StageBegan)] == [
            "initialization",
            "training",
            "saving",
        ]
