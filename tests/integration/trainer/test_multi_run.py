"""A multi-run through agent and child: merges, history, and a kill in the middle of it."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deploy.models.anvil.grammar import HOME
from tests.integration.trainer.test_worker import RUN, a_task, a_trainer, ended
from tests.support.work import FakeScheduler, ObjectServer, lease_of
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RUNS, STEPS = 3, 12
# Of a run that is killed: long enough to be in it when a checkpoint after the first merge counts.
KILLED_STEPS = 30


@pytest.fixture
def scheduler() -> Iterator[FakeScheduler]:
    objects = ObjectServer()
    yield FakeScheduler(objects=objects)
    objects.close()


def a_multi_run(
    scheduler: FakeScheduler, *, steps: int = STEPS, **changes: Any
) -> work_pb2.TrainTask:
    """Three runs of so many steps, a checkpoint every five."""
    task = a_task(scheduler.objects, max_steps=steps)
    settings = {"run_count": RUNS, "samples_per_run": 40, "validate_every_run": True,
                "drift_minimum_cosine": -1.0, **changes}  # fmt: skip
    task.training.multi_run.CopyFrom(spec_pb2.MultiRunConfig(**settings))
    return task


async def test_a_multi_run_from_lease_to_history(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """002-22, 002-34: the history names the run, and every adapter in it can be loaded"""
    scheduler.queue.append(lease_of("l-1", RUN, a_multi_run(scheduler)))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    assert not scheduler.failed
    (complete,) = scheduler.completed
    assert [metrics.step for metrics in scheduler.of_kind("metrics")][-1] == RUNS * STEPS
    assert complete.train.metrics.HasField("validation_loss")
    merges = complete.train.merges
    assert [merge.outcome for merge in merges] == [run_pb2.MERGE_OUTCOME_MERGED] * RUNS
    assert [merge.step for merge in merges] == [12, 24, 36]
    told = [list(report.merges) for report in scheduler.of_kind("samples")]
    assert [merges[:count] for count in range(1, RUNS + 1)] == [
        each for index, each in enumerate(told) if each not in told[:index]
    ]
    assert all(merge.delta_norm > 0 and merge.held_out_loss_after > 0 for merge in merges)
    (stored,) = [
        file
        for file in complete.outputs
        if file.artifact_kind == artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY
    ]
    names = [f"run-{n:03d}/adapter_{kind}" for n in range(1, RUNS + 1)
             for kind in ("config.json", "model.safetensors")]  # fmt: skip
    assert list(stored.entries) == ["history.json", *names]
    archive = zipfile.ZipFile(io.BytesIO(scheduler.objects.files["/out/merges.zip"]))
    assert archive.namelist() == list(stored.entries)
    history = json.loads(archive.read("history.json"))
    assert history["run"] == RUN
    assert [run["sha256"] for run in history["runs"]] == [merge.sha256 for merge in merges]
    last = archive.read("run-003/adapter_model.safetensors")
    assert last == scheduler.objects.files["/out/adapter/adapter_model.safetensors"]
    archive.extractall(tmp_path / "merges")
    base = AutoModelForCausalLM.from_pretrained(HOME / "weights")
    PeftModel.from_pretrained(base, tmp_path / "merges" / "run-001")


async def test_a_kill_in_any_run_changes_nothing(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """001-24, 002-34: the next attempt, on another node, gives the same adapters and history"""
    task = a_multi_run(scheduler, steps=KILLED_STEPS)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path / "a"):
        await ended(scheduler)
    whole = dict(scheduler.objects.files)
    seen = len(scheduler.of_kind("checkpoint"))

    scheduler.queue.append(lease_of("l-2", RUN, task))
    async with a_trainer(scheduler, tmp_path / "b"):
        await scheduler.until(
            "checkpoint", lambda told: any(each.step >= KILLED_STEPS for each in told[seen:])
        )
        training_child().kill()
        await ended(scheduler)
    assert scheduler.failed[-1].fault.code == "RUNTIME_WORKER_LOST"
    stored = scheduler.of_kind("checkpoint")[-1]
    assert KILLED_STEPS <= stored.step < RUNS * KILLED_STEPS
    for file in stored.files:
        path = tmp_path / "stored"
        path.write_bytes(scheduler.objects.files[f"/out/{file.path}"])
        task.checkpoint.append(scheduler.objects.add(path, file.path))
    assert "checkpoints/merges/run-001/adapter_model.safetensors" in {
        file.path for file in stored.files
    }
    for name in [name for name in scheduler.objects.files if name.startswith("/out/")]:
        del scheduler.objects.files[name]

    scheduler.queue.append(lease_of("l-3", RUN, task, attempt=2))
    async with a_trainer(scheduler, tmp_path / "c"):
        await ended(scheduler)
    assert len(scheduler.completed) == 2
    first, second = (complete.train.merges for complete in scheduler.completed)
    assert list(first) == list(second)
    assert not scheduler.of_kind("warning")
    weights = "/out/adapter/adapter_model.safetensors"
    assert scheduler.objects.files[weights] == whole[weights]
    assert scheduler.objects.files["/out/merges.zip"] == whole["/out/merges.zip"]


async def test_more_samples_than_the_pool_end_with_their_code(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-20"""
    task = a_multi_run(scheduler, samples_per_run=100_000)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    (failed,) = scheduler.failed
    assert failed.fault.code == "CONFIG_INVALID"
    assert "samples_per_run exceeds training pool" in failed.fault.message


async def test_stop_folds_the_run_under_way_in(scheduler: FakeScheduler, tmp_path: Path) -> None:
    task = a_multi_run(scheduler, steps=10_000)
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, tmp_path):
        await scheduler.until("metrics", lambda told: len(told) >= 3)
        scheduler.directive = work_service_pb2.DIRECTIVE_FINISH
        await ended(scheduler)
    (complete,) = scheduler.completed
    (merge,) = complete.train.merges
    assert merge.outcome == run_pb2.MERGE_OUTCOME_MERGED
    assert merge.step == complete.train.metrics.step


def training_child() -> psutil.Process:
    """The training process under this one."""
    return next(
        process
        for process in psutil.Process().children(recursive=True)
        if "trainer.training" in process.cmdline()
    )
