"""The exporter as the scheduler meets it: a lease comes in, a bundle goes out."""

import asyncio
import io
import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chassis.client import connect
from chassis.worker import Worker
from exporter import node
from exporter.domain.bundle import ENTRIES
from exporter.engine.weights import GgufFile
from exporter.worker import Exporter
from tests.integration.exporter.making import ANVIL
from tests.support.work import HEARTBEAT_MILLIS, FakeScheduler, ObjectServer, running
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
RUN = "projects/local/runs/run-01abcdef"
END_SECONDS = 90.0


def a_lease(
    objects: ObjectServer, adapter: Path | None, *quantizations: str, lease_id: str = "lease-1"
) -> work_pb2.Lease:
    adapter_files = sorted(adapter.iterdir()) if adapter else []
    return work_pb2.Lease(
        lease_id=lease_id,
        run=RUN,
        attempt=1,
        fencing_epoch=1,
        kind=work_pb2.TASK_KIND_EXPORT,
        heartbeat_millis=HEARTBEAT_MILLIS,
        export=work_pb2.ExportTask(
            base=work_pb2.BaseModelInput(
                base_model="tunesmith/anvil-3m",
                model_id="tunesmith/anvil-3m",
                files=[objects.add(path, path.name) for path in sorted(ANVIL.iterdir())],
            ),
            adapter=[objects.add(path, f"adapter/{path.name}") for path in adapter_files],
            quantizations=quantizations or ("Q4_K_M",),
        ),
    )


async def work_off(exporter: Exporter, scheduler: FakeScheduler, meanwhile: object = None) -> None:
    """Runs the lease loop until the task has ended."""
    stop = asyncio.Event()
    async with running(scheduler) as address:
        channel = connect(address, token=lambda: "token")
        described = node.describe(name="exporter-1", tier="export")
        loop = asyncio.create_task(Worker(channel, described, exporter.handle, stop).run())
        try:
            async with asyncio.timeout(END_SECONDS):
                await scheduler.ended.wait()
        finally:
            stop.set()
            await asyncio.wait_for(loop, timeout=20)
            await channel.close()


async def test_a_lease_ends_with_a_bundle_of_exactly_the_promised_files(
    exporter: Exporter,
    objects: ObjectServer,
    adapter_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """001-28, 001-37, 004-06: a Q4_K_M GGUF in an installable archive, stored and named."""
    scheduler = FakeScheduler(objects=objects)
    scheduler.queue.append(a_lease(objects, adapter_of(b_std=0.3)))
    await work_off(exporter, scheduler)

    (completed,) = scheduler.completed
    (output,) = completed.outputs
    content = objects.files["/out/gguf-Q4_K_M.zip"]
    archive = zipfile.ZipFile(io.BytesIO(content))
    archive.extractall(tmp_path)
    with GgufFile(tmp_path / "model.gguf") as gguf:
        assert gguf.header.number("general.file_type") == 15
        assert (
            gguf.header.text("tokenizer.chat_template")
            == (ANVIL / "chat_template.jinja").read_text()
        )
    assert archive.namelist() == list(ENTRIES) == list(output.entries)
    assert output.artifact_kind == artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
    assert (output.quantization, output.uri) == ("Q4_K_M", "object://gguf-Q4_K_M.zip")
    assert output.size_bytes == len(content)
    (proof,) = completed.export.proofs
    assert proof.proven
    assert proof.adapter_mean_kl < proof.base_mean_kl
    assert json.loads(archive.read("export_proof.json"))["proven"] is True
    assert scheduler.of_kind("stage")[0] == fault_pb2.STAGE_EXPORTING
    assert scheduler.of_kind("activity")[-1].text == "storing Q4_K_M"
    assert not list((tmp_path / "work" / "exports").iterdir())


async def test_a_run_may_have_several_quantisations(
    exporter: Exporter, objects: ObjectServer, adapter_of: Callable[..., Path]
) -> None:
    scheduler = FakeScheduler(objects=objects)
    scheduler.queue.append(a_lease(objects, adapter_of(b_std=0.3), "Q8_0", "Q2_K"))
    await work_off(exporter, scheduler)
    (completed,) = scheduler.completed
    assert [output.quantization for output in completed.outputs] == ["Q8_0", "Q2_K"]
    assert [proof.quantization for proof in completed.export.proofs] == ["Q8_0", "Q2_K"]


async def test_a_missing_adapter_is_refused_before_anything_is_fetched(
    exporter: Exporter, objects: ObjectServer
) -> None:
    """003-04: no conversion is started."""
    scheduler = FakeScheduler(objects=objects)
    lease = a_lease(objects, None)
    objects.files.clear()
    scheduler.queue.append(lease)
    await work_off(exporter, scheduler)
    (failed,) = scheduler.failed
    assert failed.fault.code == "EXPORT_ADAPTER_MISSING"
    assert failed.fault.stage == fault_pb2.STAGE_EXPORTING


async def test_initial_weights_are_refused(
    exporter: Exporter, objects: ObjectServer, adapter_of: Callable[..., Path]
) -> None:
    """002-23, stricter: an adapter that was never trained is not exported."""
    scheduler = FakeScheduler(objects=objects)
    scheduler.queue.append(a_lease(objects, adapter_of(b_std=0.0)))
    await work_off(exporter, scheduler)
    (failed,) = scheduler.failed
    assert failed.fault.code == "EXPORT_ADAPTER_UNTRAINED"


async def test_a_killed_child_fails_the_attempt_and_the_next_lease_finds_a_new_one(
    exporter: Exporter, objects: ObjectServer, adapter_of: Callable[..., Path]
) -> None:
    scheduler = FakeScheduler(objects=objects)
    scheduler.queue.append(a_lease(objects, adapter_of(b_std=0.3)))
    child = exporter._child
    assert child is not None
    os.kill(child._process.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(1.0, os.kill, child._process.pid, signal.SIGKILL)
    await work_off(exporter, scheduler)
    (failed,) = scheduler.failed
    assert failed.fault.code == "RUNTIME_GGUF_EXPORT_FAILED"

    again = FakeScheduler(objects=objects)
    again.queue.append(a_lease(objects, adapter_of(b_std=0.3), lease_id="lease-2"))
    await work_off(exporter, again)
    assert len(again.completed) == 1


async def test_an_abort_ends_the_work_at_once_and_leaves_no_file(
    exporter: Exporter, objects: ObjectServer, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """001-33: a cancelled run's export stores nothing."""
    scheduler = FakeScheduler(objects=objects)
    scheduler.directive = work_service_pb2.DIRECTIVE_ABORT
    child = exporter._child
    assert child is not None
    os.kill(child._process.pid, signal.SIGSTOP)
    scheduler.queue.append(a_lease(objects, adapter_of(b_std=0.3)))
    stop = asyncio.Event()
    async with running(scheduler) as address:
        channel = connect(address, token=lambda: "token")
        described = node.describe(name="exporter-1", tier="export")
        loop = asyncio.create_task(Worker(channel, described, exporter.handle, stop).run())
        async with asyncio.timeout(20):
            while child.alive:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.wait_for(loop, timeout=20)
        await channel.close()
    assert not scheduler.completed
    assert not [name for name in objects.files if name.startswith("/out/")]
    assert not list((tmp_path / "work" / "exports").glob("*"))
