"""A multi-run through the whole stack: asked for, trained, billed, shown, and gone back in."""

import zipfile
from pathlib import Path

import pytest

from tests.demo import bundles, lesson
from tests.support.whole_stack import BASE, settled
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.client import Client
from tunesmith.errors import InputError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
RUNS, STEPS, SAMPLES = 3, 15, 100


def a_multi_run(*, samples: int) -> spec_pb2.RunSpec:
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.training.max_steps = STEPS
    spec.training.multi_run.run_count = RUNS
    spec.training.multi_run.samples_per_run = samples
    spec.export.gguf = False
    return spec


def test_a_multi_run_is_planned_trained_shown_and_gone_back_in(
    client: Client, habit: str, tmp_path: Path
) -> None:
    """002-22, 002-34, 001-35: each run changes the adapter, and every one of them can be had"""
    spec = a_multi_run(samples=SAMPLES)
    assert list(spec.datasets) == [habit]
    run = client.runs.wait(client.runs.submit(spec).name)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert run.snapshot.estimated_steps == RUNS * STEPS == run.metrics.total_steps
    assert run.metrics.step == run.metrics.total_steps
    assert [merge.outcome for merge in run.merges] == [run_pb2.MERGE_OUTCOME_MERGED] * RUNS
    assert all(merge.delta_norm > 0 for merge in run.merges)
    assert all(merge.held_out_loss_after > 0 for merge in run.merges)
    (entry,) = client.artifacts.list(run=run.name)
    assert [file.kind for file in entry.files] == [
        artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
        artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY,
    ]
    assert settled(client, run.name).run == run.name
    digests = set()
    for number in range(1, RUNS + 1):
        with zipfile.ZipFile(client.artifacts.rollback(run.name, number, tmp_path)) as archive:
            assert set(archive.namelist()) == bundles.ADAPTER_FILES
            digests.add(archive.read("adapter_model.safetensors"))
    assert len(digests) == RUNS


def test_more_samples_than_the_pool_are_refused_with_the_bound(client: Client, habit: str) -> None:
    """002-17"""
    with pytest.raises(InputError) as caught:
        client.runs.submit(a_multi_run(samples=1_000_000))
    assert caught.value.code == "CONFIG_INVALID"
    assert "samples_per_run exceeds training pool" in str(caught.value)
    assert caught.value.remedy.startswith("Reduce --samples (Python: samples_per_run) below ")
