"""Calls that tests of exports make: a run whose adapter is stored, an export of it, its bundle."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chassis.identity import Role
from tests.support.scheduler_calls import (
    EXPORTER,
    NODE,
    an_output,
    complete,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
)
from tests.support.scheduling import Stubs, calling
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.export.v1 import export_pb2, export_service_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
TRAINS, EXPORTS = work_pb2.TASK_KIND_TRAIN, work_pb2.TASK_KIND_EXPORT


@dataclass(slots=True, kw_only=True)
class People:
    """Who calls: a user, a trainer, exporters, another service."""

    user: Stubs
    trainer: Stubs
    exporter: Stubs
    service: Stubs


@asynccontextmanager
async def people(address: str) -> AsyncIterator[People]:
    async with (
        calling(address) as user,
        calling(address, Role.NODE, subject=NODE) as trainer,
        calling(address, Role.NODE, subject="nodes/*") as exporter,
        calling(address, Role.SERVICE, subject="billing") as service,
    ):
        await registered(trainer, NODE, TRAINS)
        await registered(exporter, EXPORTER, EXPORTS)
        yield People(user=user, trainer=trainer, exporter=exporter, service=service)


async def trained(people: People, *, request_id: str | None = None) -> run_pb2.Run:
    """A run whose adapter is stored; it has ended when it wanted no GGUF."""
    run = await submitted(people.user, request_id=request_id)
    lease = await leased(people.trainer)
    report = work_service_pb2.TaskReport(
        report_number=2, metrics=run_pb2.RunMetrics(step=1, total_steps=10, loss=2.5)
    )
    await heartbeat(people.trainer, lease, started(), report)
    config = await an_output(people.trainer, lease, "adapter/adapter_config.json")
    archive = await an_output(
        people.trainer,
        lease,
        "adapter.zip",
        artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
    )
    metrics = run_pb2.RunMetrics(step=10, total_steps=10)
    result = work_service_pb2.TrainResult(metrics=metrics)
    await complete(people.trainer, lease, config, archive, train=result)
    return await shown(people, run.name)


async def shown(people: People, run: str) -> run_pb2.Run:
    found: run_pb2.Run = (
        await people.user.runs.GetRun(run_service_pb2.GetRunRequest(name=run))
    ).run
    return found


async def asked(
    people: People, artifact: str, *, quantization: str = "Q8_0", **fields: Any
) -> export_pb2.Export:
    request = export_service_pb2.CreateExportRequest(
        request_id=fields.pop("request_id", f"ask {artifact} {quantization}"),
        artifact=artifact,
        quantization=quantization,
        **fields,
    )
    export: export_pb2.Export = (await people.user.exports.CreateExport(request)).export
    return export


async def state_of(people: People, name: str) -> export_pb2.Export:
    request = export_service_pb2.GetExportRequest(name=name)
    export: export_pb2.Export = (await people.user.exports.GetExport(request)).export
    return export


async def made(
    people: People, lease: work_pb2.Lease, *, quantization: str = "Q8_0"
) -> work_pb2.OutputFile:
    """A bundle that the exporter has stored and named as the end of its task."""
    bundle: work_pb2.OutputFile = await an_output(
        people.exporter,
        lease,
        f"gguf-{quantization}.zip",
        artifact_kind=GGUF,
        quantization=quantization,
    )
    proof = run_pb2.ExportProof(quantization=quantization, proven=True)
    result = work_service_pb2.ExportResult(proofs=[proof])
    await complete(people.exporter, lease, bundle, export=result)
    return bundle
