"""Unsloth that does not load, through agent and child: the run goes on, or ends with its code."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainer.test_worker import a_task, a_trainer, ended
from tests.support.work import FakeScheduler, ObjectServer, lease_of
from trainer.domain.device import UnslothPolicy
from tunesmith.api.fault.v1 import fault_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RUN = "projects/local/runs/r-1"
# The same name as the real package, and broken as that is when its kernels do not fit the card.
BROKEN_AT_LOAD = """
class FastLanguageModel:
    @staticmethod
    def from_pretrained(**_):
        import transformers.models.llama.modeling_llama as llama
        llama.LlamaAttention.forward = None  # It changes the libraries before it fails.
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
"""


BROKEN_AT_IMPORT = """
import transformers.models.llama.modeling_llama as llama
llama.LlamaAttention.forward = None  # It has changed the libraries by now.
raise ImportError("libcudart.so.13: cannot open shared object file")
"""


@pytest.fixture
def scheduler() -> Any:
    objects = ObjectServer()
    yield FakeScheduler(objects=objects)
    objects.close()


async def run(scheduler: FakeScheduler, folder: Path, **training: Any) -> None:
    task = a_task(scheduler.objects, max_steps=4, **{"unsloth_fallback": True, **training})
    scheduler.queue.append(lease_of("l-1", RUN, task))
    async with a_trainer(scheduler, folder, unsloth=UnslothPolicy.ALWAYS):
        await ended(scheduler)


@pytest.fixture
def broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that imports, and breaks when it is asked for a model."""
    package = tmp_path / "broken" / "unsloth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN_AT_LOAD)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def warnings(scheduler: FakeScheduler) -> list[str]:
    return [warning.message for warning in scheduler.of_kind("warning")]


async def test_unsloth_that_is_not_there_is_a_warning_and_the_run_completes(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-24: the import fails for real; there is no such package here."""
    await run(scheduler, tmp_path)
    assert warnings(scheduler) == [
        (
            "Unsloth load failed (ModuleNotFoundError: No module named 'unsloth'); falling back to "
            "transformers + PEFT. Set Trainer(unsloth_fallback=False) to disable."
        )
    ]
    assert len(scheduler.completed) == 1


async def test_an_import_that_fails_halfway_leaves_no_trace_in_the_fallback(
    scheduler: FakeScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-24"""
    package = tmp_path / "broken" / "unsloth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN_AT_IMPORT)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    await run(scheduler, tmp_path)
    (told,) = warnings(scheduler)
    assert "(ImportError: libcudart.so.13: cannot open shared object file)" in told
    assert len(scheduler.completed) == 1


@pytest.mark.usefixtures("broken_package")
async def test_a_failed_load_moves_the_run_to_a_process_with_untouched_libraries(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-24: what the package did to transformers does not reach the fallback."""
    await run(scheduler, tmp_path)
    assert warnings(scheduler) == [
        (
            "Unsloth load failed (RuntimeError: CUDA error: no kernel image is available for "
            "execution on the device); falling back to transformers + PEFT. "
            "Set Trainer(unsloth_fallback=False) to disable."
        )
    ]
    assert scheduler.of_kind("stage") == [
        fault_pb2.STAGE_DATA_DOWNLOAD,
        fault_pb2.STAGE_INITIALIZATION,
        fault_pb2.STAGE_TRAINING,
        fault_pb2.STAGE_SAVING,
        fault_pb2.STAGE_UPLOAD,
    ]
    assert [metrics.step for metrics in scheduler.of_kind("metrics")] == [1, 2, 3, 4]
    assert len(scheduler.completed) == 1


@pytest.mark.usefixtures("broken_package")
async def test_without_the_fallback_a_failed_load_ends_the_run(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """002-25"""
    await run(scheduler, tmp_path, unsloth_fallback=False)
    assert not scheduler.completed
    assert scheduler.failed[0].fault.code == "RUNTIME_UNSLOTH_FAILED"
    assert scheduler.failed[0].fault.stage == fault_pb2.STAGE_INITIALIZATION
