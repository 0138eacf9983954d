"""The trainer process's agent and child against a scheduler and a store of the test's own."""

import asyncio
import io
import json
import os
import re
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from chassis.client import connect
from chassis.worker import Worker
from deploy.models.anvil.grammar import HOME, held_out
from tests.support.modelhub_server import ModelHubServer, Repo
from tests.support.work import FakeScheduler, ObjectServer, lease_of, running
from trainer import node
from trainer.config import Config
from trainer.worker import Trainer
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RUN = "projects/local/runs/r-1"
ADAPTER_FILES = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
]
END_SECONDS_MAX = 120


def a_task(objects: ObjectServer, *, max_steps: int, **training: Any) -> work_pb2.TrainTask:
    weights = HOME / "weights"
    return work_pb2.TrainTask(
        base=work_pb2.BaseModelInput(
            base_model="tunesmith/anvil-3m",
            model_id="tunesmith/anvil-3m",
            files=[objects.add(path, path.name) for path in sorted(weights.iterdir())],
        ),
        datasets=[
            work_pb2.DatasetInput(
                name="projects/local/datasets/habit/versions/1",
                format=dataset_pb2.FORMAT_MESSAGES,
                file=objects.add(HOME / "habit.jsonl", "habit.jsonl"),
            )
        ],
        training=spec_pb2.TrainingConfig(
            **{
                "epochs": 1,
                "max_steps": max_steps,
                "micro_batch_size": 8,
                "accumulation_steps": 1,
                "learning_rate": 2e-3,
                "warmup_ratio": 0.03,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "max_sequence_tokens": 256,
                "packing": True,
                "gradient_checkpointing": False,
                "seed": 42,
                "oom_recovery": True,
                "checkpoint_every_steps": 5,
                "checkpoint_keep_count": 1,
                **training,
            }
        ),
        lora=spec_pb2.LoraConfig(
            rank=8, alpha=16, dropout=0, target_modules=["all-linear"], use_rslora=False
        ),
        sample_prompts=held_out()["prompts"],
    )


@asynccontextmanager
async def a_trainer(
    scheduler: FakeScheduler,
    folder: Path,
    *,
    hub_url: str = "http://127.0.0.1:9",
    **settings: Any,
) -> AsyncIterator[Trainer]:
    """A trainer that works off the scheduler's queue."""
    async with running(scheduler) as address:
        config = Config(
            scheduler_addr=address,
            node_token="t",
            node_name="n-1",
            work_dir=folder / "work",
            model_cache=folder / "cache",
            model_hub_url=hub_url,
            **settings,
        )
        trainer = Trainer(config)
        channel = connect(address, token=lambda: "t")
        stop = asyncio.Event()
        described = node.describe(name="n-1", tier="cpu", capabilities=())
        worker = asyncio.create_task(Worker(channel, described, trainer.handle, stop).run())
        try:
            yield trainer
        finally:
            stop.set()
            await asyncio.wait_for(worker, timeout=10)
            await trainer.close()
            await channel.close()


@pytest.fixture
def scheduler() -> Any:
    objects = ObjectServer()
    yield FakeScheduler(objects=objects)
    objects.close()


async def ended(scheduler: FakeScheduler) -> None:
    await asyncio.wait_for(scheduler.ended.wait(), timeout=END_SECONDS_MAX)
    scheduler.ended.clear()


async def test_a_run_from_lease_to_adapter(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """001-11, 001-18, 001-35, 001-36, 004-01"""
    task = a_task(scheduler.objects, max_steps=12)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    assert not scheduler.failed
    (complete,) = scheduler.completed
    assert scheduler.of_kind("stage") == [
        fault_pb2.STAGE_DATA_DOWNLOAD,
        fault_pb2.STAGE_INITIALIZATION,
        fault_pb2.STAGE_TRAINING,
        fault_pb2.STAGE_SAVING,
        fault_pb2.STAGE_UPLOAD,
    ]
    assert [metrics.step for metrics in scheduler.of_kind("metrics")] == list(range(1, 13))
    kinds = [report.WhichOneof("report") for report in scheduler.reports]
    assert kinds.index("activity") < kinds.index("training_started")
    told = [activity.text for activity in scheduler.of_kind("activity")]
    assert re.fullmatch(r"trying the longest batch: [0-9,]+ tokens", told[-1])
    assert complete.train.metrics.progress_percent == 100.0
    assert len(complete.train.samples) == 3
    assert [stored.step for stored in scheduler.of_kind("checkpoint")][-1] == 12
    stored = {file.path: file for file in complete.outputs}
    assert set(stored) == {
        "adapter.zip",
        "adapter/proof_reference.safetensors",
        *(f"adapter/{name}" for name in ADAPTER_FILES),
    }
    archive = zipfile.ZipFile(io.BytesIO(scheduler.objects.files["/out/adapter.zip"]))
    assert sorted(archive.namelist()) == ADAPTER_FILES
    archive.extractall(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tunesmith/anvil-3m"
    base = AutoModelForCausalLM.from_pretrained(HOME / "weights")
    PeftModel.from_pretrained(base, tmp_path / "adapter")


async def test_second_run_finds_the_base_in_the_cache_and_warm(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """001-24"""
    task = a_task(scheduler.objects, max_steps=2)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path) as trainer:
        await ended(scheduler)
        assert trainer.warm_models == ("tunesmith/anvil-3m",)
        scheduler.objects.files = {
            path: content
            for path, content in scheduler.objects.files.items()
            if path == "/in/habit.jsonl"
        }
        scheduler.queue.append(lease_of("l-2", f"{RUN}2", task))
        await ended(scheduler)
    assert len(scheduler.completed) == 2


async def test_abort_frees_the_device_within_a_second(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """001-31, 001-33"""
    task = a_task(scheduler.objects, max_steps=100_000)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("metrics")
        child = training_child()
        scheduler.directive = work_service_pb2.DIRECTIVE_ABORT
        began = time.monotonic()
        await asyncio.to_thread(child.wait, timeout=10)
        assert time.monotonic() - began < 1.0
    assert not scheduler.completed
    assert "/out/adapter.zip" not in scheduler.objects.files


async def test_finish_keeps_what_there_is(scheduler: FakeScheduler, tmp_path: Path) -> None:
    task = a_task(scheduler.objects, max_steps=100_000)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("metrics", lambda told: len(told) >= 5)
        scheduler.directive = work_service_pb2.DIRECTIVE_FINISH
        await ended(scheduler)
    (complete,) = scheduler.completed
    assert 5 <= complete.train.metrics.step < 100_000
    # A node that is lost while the adapter is stored takes none of these steps along.
    assert scheduler.of_kind("checkpoint")[-1].step == complete.train.metrics.step


async def test_killed_child_fails_the_task_and_the_next_attempt_resumes(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    task = a_task(scheduler.objects, max_steps=100_000)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("checkpoint")
        training_child().kill()
        await ended(scheduler)
        assert scheduler.failed[0].fault.code == "RUNTIME_WORKER_LOST"
        assert scheduler.failed[0].fault.stage == fault_pb2.STAGE_TRAINING
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


async def test_child_sees_no_secret(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNESMITH_NODE_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hf_secret")
    scheduler.queue.append(lease_of("l-1", RUN, a_task(scheduler.objects, max_steps=100_000)))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("metrics")
        environment = training_child().environ()
        assert "hf_secret" not in environment.values()
        assert not [name for name in environment if name.startswith("TUNESMITH_")]


async def test_bad_data_ends_with_its_code_and_stage(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    task = a_task(scheduler.objects, max_steps=3)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    task.datasets[0].file.CopyFrom(scheduler.objects.add(bad, "bad.jsonl"))
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    assert scheduler.failed[0].fault.code == "DATASET_NO_TRAINED_TOKENS"
    assert scheduler.failed[0].fault.stage == fault_pb2.STAGE_INITIALIZATION


async def test_a_dataset_that_was_deleted_while_the_run_waited_is_named(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """000-33"""
    task = a_task(scheduler.objects, max_steps=3)
    scheduler.objects.files.pop("/in/habit.jsonl")
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    fault = scheduler.failed[0].fault
    assert fault.code == "DATASET_DELETED"
    assert "projects/local/datasets/habit/versions/1" in fault.message
    assert fault.stage == fault_pb2.STAGE_DATA_DOWNLOAD


async def test_base_comes_from_the_hub_with_the_users_token(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """004-02, 003-26: a gated model; the token is in no file that the node keeps."""
    task = a_task(scheduler.objects, max_steps=2)
    repo = Repo.of_folder(HOME / "weights")
    repo.gated, repo.tokens = True, frozenset({"hf_of-ada"})
    with ModelHubServer(repos={"someone/llama": repo}) as hub:
        task.base.CopyFrom(
            work_pb2.BaseModelInput(
                base_model="https://hub/someone/llama",
                model_id="someone/llama",
                revision=hub.repos["someone/llama"].sha,
                hub_token="hf_of-ada",
            )
        )
        scheduler.queue.append(lease_of("l-1", RUN, task))
        async with a_trainer(scheduler, tmp_path, hub_url=hub.url):
            await ended(scheduler)
    assert not scheduler.failed
    assert hub.tokens_seen == {"hf_of-ada"}
    assert not _files_with(b"hf_of-ada", tmp_path)
    config = json.loads(scheduler.objects.files["/out/adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == "https://hub/someone/llama"


async def test_gated_base_ends_with_its_code_in_data_download(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-07"""
    task = a_task(scheduler.objects, max_steps=2)
    repo = Repo.of_folder(HOME / "weights")
    with ModelHubServer(repos={"someone/llama": repo}) as hub:
        hub.fail("someone/llama", 403)
        task.base.CopyFrom(
            work_pb2.BaseModelInput(
                base_model="someone/llama", model_id="someone/llama", revision=repo.sha
            )
        )
        scheduler.queue.append(lease_of("l-1", RUN, task))
        async with a_trainer(scheduler, tmp_path, hub_url=hub.url):
            await ended(scheduler)
    assert scheduler.failed[0].fault.code == "DEP_MODEL_LOAD_FAILED"
    assert scheduler.failed[0].fault.stage == fault_pb2.STAGE_DATA_DOWNLOAD


def training_child() -> psutil.Process:
    return next(
        process
        for process in psutil.Process(os.getpid()).children(recursive=True)
        if "trainer.training" in " ".join(process.cmdline())
    )


def _files_with(secret: bytes, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
