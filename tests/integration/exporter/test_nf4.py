"""A run over an nf4 base, from lease to a GGUF that is proven against the unquantised base."""

from pathlib import Path
from typing import Any

import pytest

from exporter.engine.export import Engine
from tests.integration.exporter.making import export_bundle
from tests.integration.trainer.test_worker import a_task, a_trainer, ended
from tests.support.work import FakeScheduler, ObjectServer, lease_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def scheduler() -> Any:
    objects = ObjectServer()
    yield FakeScheduler(objects=objects)
    objects.close()


async def test_a_run_over_four_bits_is_exported_from_the_whole_base(
    scheduler: FakeScheduler, engine: Engine, tmp_path: Path
) -> None:
    """The adapter names the unquantised base, and the export is close to the adapter on it."""
    task = a_task(scheduler.objects, max_steps=40, load_in_4bit=True)
    scheduler.queue.append(lease_of("l-1", "projects/local/runs/r-1", task))
    async with a_trainer(scheduler, tmp_path):
        await ended(scheduler)
    assert not scheduler.failed
    assert not scheduler.of_kind("warning")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path, content in scheduler.objects.files.items():
        if path.startswith("/out/adapter/"):
            (adapter / Path(path).name).write_bytes(content)
    assert '"tunesmith/anvil-3m"' in (adapter / "adapter_config.json").read_text()
    assert "quantization" not in (adapter / "adapter_config.json").read_text()
    assert "4 bits (nf4)" in (adapter / "README.md").read_text()
    proof = export_bundle(engine, adapter, tmp_path).proof
    assert proof.proven
    assert proof.adapter_mean_kl < 0.1 < proof.base_mean_kl
