"""Whole runs on MLX through agent and child: they learn, and what they leave is as on any rail."""

import asyncio
import io
import itertools
import time
import zipfile
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deploy.local import llama_build
from deploy.models.anvil.grammar import HOME
from exporter.engine.export import Engine, export
from exporter.engine.kernel.kernel import Kernel
from exporter.pipe import Export
from tests.integration.trainer.test_worker import (
    ADAPTER_FILES,
    RUN,
    a_task,
    a_trainer,
    ended,
    training_child,
)
from tests.support.mlx import needs_mlx
from tests.support.work import FakeScheduler, ObjectServer, lease_of
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = [pytest.mark.integration, needs_mlx, pytest.mark.timeout(300)]

STEPS = 30


@pytest.fixture
def scheduler() -> Any:
    objects = ObjectServer()
    yield FakeScheduler(objects=objects)
    objects.close()


def an_mlx_task(objects: ObjectServer, *, max_steps: int, **training: Any) -> work_pb2.TrainTask:
    """MLX's build for processors multiplies slowly, so that steps are small."""
    small = {"micro_batch_size": 2, "learning_rate": 4e-3, "backend": spec_pb2.BACKEND_MLX}
    return a_task(objects, max_steps=max_steps, **{**small, **training})


@pytest.mark.slow
async def test_a_run_on_mlx_is_learned_proven_and_exported(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """A17, 002-40: loss falls; PEFT says what MLX said; the GGUF behaves like both."""
    validation = spec_pb2.ValidationConfig(holdout_ratio=0.05, every_steps=15)
    task = an_mlx_task(scheduler.objects, max_steps=STEPS, validation=validation)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path) as trainer:
        await ended(scheduler)
        assert "mlx" in trainer.capabilities
    assert not scheduler.failed
    (complete,) = scheduler.completed
    metrics = scheduler.of_kind("metrics")
    assert [each.step for each in metrics] == list(range(1, STEPS + 1))
    assert mean(each.loss for each in metrics[-5:]) < mean(each.loss for each in metrics[:5]) - 0.5
    assert 0 < metrics[-1].validation_loss < metrics[14].validation_loss
    assert all(each.grad_norm > 0 and each.tokens_per_second > 0 for each in metrics)
    assert len(complete.train.samples) == 3
    assert all(each.completion and each.base_completion for each in complete.train.samples)
    adapter = tmp_path / "adapter"
    archive = zipfile.ZipFile(io.BytesIO(scheduler.objects.files["/out/adapter.zip"]))
    assert sorted(archive.namelist()) == ADAPTER_FILES
    archive.extractall(adapter)
    proof = adapter / "proof_reference.safetensors"
    proof.write_bytes(scheduler.objects.files[f"/out/adapter/{proof.name}"])
    _peft_says_what_mlx_said(adapter, load_file(proof))
    exported = await asyncio.to_thread(_exported, adapter, tmp_path)
    assert exported.proof.proven
    assert exported.proof.adapter_mean_kl < exported.proof.base_mean_kl


def _peft_says_what_mlx_said(adapter: Path, proof: dict[str, torch.Tensor]) -> None:
    base = AutoModelForCausalLM.from_pretrained(HOME / "weights", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    bounds = proof["segment_offsets"].tolist()
    for begin, end in itertools.pairwise(bounds):
        ids_1T = proof["token_ids"][begin:end].long()[None]
        with torch.no_grad():
            said = {"adapter": model(input_ids=ids_1T).logits[0]}
            with model.disable_adapter():
                said["base"] = model(input_ids=ids_1T).logits[0]
        for who, logits_TV in said.items():
            top_TK = proof[f"{who}_topk_ids"][begin:end].long()
            expected_TK = logits_TV.log_softmax(-1).gather(-1, top_TK)
            mlx_TK = proof[f"{who}_topk_logprobs"][begin:end]
            torch.testing.assert_close(mlx_TK, expected_TK, atol=1e-3, rtol=0)
        assert (said["adapter"] - said["base"]).abs().max() > 0.5


def _exported(adapter: Path, tmp_path: Path) -> Any:
    engine = Engine(
        cache=tmp_path / "gguf",
        vendor=llama_build.vendor_folder(),
        thread_count=1,
        kernel=Kernel.prepare(tmp_path / "kernels"),
        llama_version="test",
    )
    job = Export(
        checkpoint=str(HOME / "weights"),
        base_key="anvil",
        base_model="tunesmith/anvil-3m",
        adapter=str(adapter),
        quantization="Q8_0",
        target=str(tmp_path / "bundle.zip"),
        run=RUN,
    )
    return export(engine, job, lambda _step, _percent: None)


async def test_abort_on_mlx_frees_the_device_within_a_second(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """001-33; nothing is compiled into the folder that all users share."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    scheduler.queue.append(lease_of("l-1", RUN, an_mlx_task(scheduler.objects, max_steps=100_000)))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("metrics")
        child = training_child()
        scheduler.directive = work_service_pb2.DIRECTIVE_ABORT
        began = time.monotonic()
        await asyncio.to_thread(child.wait, timeout=10)
        assert time.monotonic() - began < 1.0
    assert not scheduler.completed
    assert not (shared / "mlx").exists()


@pytest.mark.slow
async def test_a_killed_child_on_mlx_resumes_and_a_finished_one_keeps_its_work(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """The next attempt continues from the checkpoint of the first."""
    task = an_mlx_task(scheduler.objects, max_steps=100_000, checkpoint_every_steps=2)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("checkpoint")
        training_child().kill()
        await ended(scheduler)
        assert scheduler.failed[0].fault.code == "RUNTIME_WORKER_LOST"
        stored = scheduler.of_kind("checkpoint")[-1]
        task.checkpoint_step = stored.step
        for file in stored.files:
            path = tmp_path / "stored"
            path.write_bytes(scheduler.objects.files[f"/out/{file.path}"])
            task.checkpoint.append(scheduler.objects.add(path, file.path))
        scheduler.queue.append(lease_of("l-2", RUN, task, attempt=2))
        await scheduler.until("training_started", lambda told: len(told) >= 2)
        scheduler.directive = work_service_pb2.DIRECTIVE_FINISH
        await ended(scheduler)
    assert [began.from_step for began in scheduler.of_kind("training_started")] == [0, stored.step]
    assert not scheduler.of_kind("warning")
    assert len(scheduler.completed) == 1


async def test_what_mlx_does_not_do_is_refused_by_the_node_too(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-38: DoRA reaches the node only past the validator."""
    task = an_mlx_task(scheduler.objects, max_steps=2)
    task.lora.use_dora = True
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    (failed,) = scheduler.failed
    assert failed.fault.code == "CONFIG_INVALID_SETTING"
    assert "DoRA" in failed.fault.message
