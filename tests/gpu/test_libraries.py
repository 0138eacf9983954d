"""Both rails on CUDA, each in a child of its own: they learn, and their adapters load anywhere."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deploy.models.anvil.grammar import HOME
from modelspec.recipe import Backend, Optimizer, Precision
from tests.gpu.conftest import StartChild
from tests.support.training import a_plan, changed
from trainer.child import Child
from trainer.domain.device import UnslothPolicy
from trainer.domain.plan import TrainPlan
from trainer.pipe import Failed, Finished, FromChild, StepTaken, Warned

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

STEPS = 40
RAILS = [UnslothPolicy.ALWAYS, UnslothPolicy.NEVER]
BROKEN = """
class FastLanguageModel:
    @staticmethod
    def from_pretrained(**_):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
"""


def plan_of(**changes: Any) -> TrainPlan:
    """Anvil and its habit on the GPU."""
    settings = {
        "backend": Backend.CUDA,
        "precision": Precision.AUTO,
        "max_steps": STEPS,
        "micro_batch_size": 8,
        "accumulation_steps": 1,
        "lr_peak": 2e-3,
        "adapter_rank": 8,
        "gradient_checkpointing": True,
    }
    return a_plan(**{**settings, **changes})


async def trained(child: Child, plan: TrainPlan, folder: Path) -> list[FromChild]:
    await asyncio.to_thread(folder.mkdir)
    placed = changed(plan, work_folder=str(folder), log_path=str(folder / "run.log"))
    return [message async for message in child.train(placed)]


def losses(messages: list[FromChild]) -> list[float]:
    return [message.loss for message in messages if isinstance(message, StepTaken)]


def finished(messages: list[FromChild]) -> Finished:
    end = messages[-1]
    assert isinstance(end, Finished), end
    return end


def warnings(messages: list[FromChild]) -> list[str]:
    return [message.message for message in messages if isinstance(message, Warned)]


@pytest.mark.parametrize("policy", RAILS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": False},
        {"gradient_checkpointing": False},
        {"precision": Precision.FP16},
        {"load_in_4bit": True},
        {"adapter_use_rslora": True},
        {"adapter_dropout": 0.1},
    ],
    ids=["plain", "padded", "kept-activations", "fp16", "nf4", "rslora", "dropout"],
)
async def test_a_rail_learns_and_its_adapter_loads_anywhere(
    policy: UnslothPolicy, changes: dict[str, Any], start_child: StartChild, tmp_path: Path
) -> None:
    """001-26, 001-27: no warning: the rail that was asked for is the one that trained."""
    child = await start_child(policy)
    assert ("unsloth" in child.capabilities) is (policy is UnslothPolicy.ALWAYS)
    messages = await trained(child, plan_of(**changes), tmp_path / "run")
    assert not [text for text in warnings(messages) if "Unsloth" in text or "row" in text]
    curve = losses(messages)
    assert len(curve) == STEPS
    assert curve[-1] < 0.7 * curve[0]
    base = AutoModelForCausalLM.from_pretrained(HOME / "weights")
    PeftModel.from_pretrained(base, finished(messages).adapter_folder)
    assert all(sample.completion for sample in finished(messages).samples)


async def test_both_rails_take_the_same_path(start_child: StartChild, tmp_path: Path) -> None:
    """Same rows, same order, same loss; kernels differ in the last bits of bf16 alone."""
    curves = []
    for policy in RAILS:
        child = await start_child(policy)
        messages = await trained(child, plan_of(), tmp_path / policy.value)
        curves.append(losses(messages))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=0.02)
    assert curves[0] == pytest.approx(curves[1], abs=0.25)


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
async def test_eight_bit_optimizers_learn_and_resume(
    optimizer: Optimizer, start_child: StartChild, tmp_path: Path
) -> None:
    """Paged moments come back out of a checkpoint as they went in."""
    child = await start_child(UnslothPolicy.NEVER)
    # Rank 32 on 256 columns is the size from which bitsandbytes takes 8 bits.
    plan = plan_of(optimizer=optimizer, adapter_rank=32, checkpoint_every_steps=STEPS // 2)
    whole = losses(await trained(child, plan, tmp_path / "whole"))
    folder = tmp_path / "whole" / "checkpoints" / f"step-{STEPS // 2:08d}"
    resumed = losses(
        await trained(
            child, changed(plan, attempt=2, checkpoint_folder=str(folder)), tmp_path / "resumed"
        )
    )
    assert whole[-1] < 0.7 * whole[0]
    assert resumed == pytest.approx(whole[STEPS // 2 :], abs=0.05)


async def test_a_second_run_after_unsloth_begins_from_the_untouched_base(
    start_child: StartChild, tmp_path: Path
) -> None:
    """Its kernels stay in the layers, so nothing of a run is kept for the next."""
    child = await start_child(UnslothPolicy.ALWAYS)
    first = await trained(child, plan_of(), tmp_path / "first")
    second = await trained(child, plan_of(), tmp_path / "second")
    assert losses(second)[0] == pytest.approx(losses(first)[0], rel=0.01)
    assert finished(first).cached_models == ()


async def test_broken_kernels_fall_back_on_the_gpu(
    start_child: StartChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-24, 002-25"""
    package = tmp_path / "broken" / "unsloth"
    await asyncio.to_thread(package.mkdir, parents=True)
    await asyncio.to_thread((package / "__init__.py").write_text, BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    child = await start_child(UnslothPolicy.AUTO)
    messages = await trained(child, plan_of(max_steps=4), tmp_path / "run")
    assert warnings(messages)[0].startswith("Unsloth load failed (RuntimeError: CUDA error")
    assert len(losses(messages)) == 4
    assert not child.reusable
    strict = await start_child(UnslothPolicy.AUTO)
    refused = await trained(strict, plan_of(unsloth_fallback=False), tmp_path / "strict")
    assert isinstance(refused[-1], Failed)
    assert refused[-1].code == "RUNTIME_UNSLOTH_FAILED"


async def test_a_compiled_run_takes_the_same_path(start_child: StartChild, tmp_path: Path) -> None:
    """003-08"""
    child = await start_child(UnslothPolicy.NEVER)
    plain = losses(await trained(child, plan_of(), tmp_path / "plain"))
    compiled = losses(await trained(child, plan_of(torch_compile=True), tmp_path / "compiled"))
    assert compiled == pytest.approx(plain, abs=0.25)
