"""Calls that tests of the scheduler make again and again: submit, register, lease, report, end."""

import uuid
from collections.abc import Sequence
from typing import Any

from tests.support.scheduling import Stubs
from tunesmith.api.event.v1 import event_service_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

NODE = "nodes/trainer-1"
EXPORTER = "nodes/exporter-1"


def a_spec() -> spec_pb2.RunSpec:
    return spec_pb2.RunSpec(
        base_model="tunesmith/anvil-3m",
        datasets=["projects/acme/datasets/habit"],
        training=spec_pb2.TrainingConfig(epochs=2),
        lora=spec_pb2.LoraConfig(rank=8),
        gpu_tier="cpu",
        attestations=spec_pb2.RightsAttestations(dataset_rights=True, model_license=True),
    )


async def submitted(
    stubs: Stubs,
    *,
    request_id: str | None = None,
    spec: spec_pb2.RunSpec | None = None,
    **fields: Any,
) -> run_pb2.Run:
    request = run_service_pb2.SubmitRunRequest(
        request_id=request_id or uuid.uuid4().hex,
        parent="projects/acme",
        spec=spec or a_spec(),
        **fields,
    )
    response = await stubs.runs.SubmitRun(request)
    run: run_pb2.Run = response.run
    return run


async def registered(
    stubs: Stubs,
    node: str,
    kind: Any,
    *,
    incarnation: str = "i1",
    tier: str = "cpu",
    capabilities: Sequence[str] = (),
) -> None:
    await stubs.work.RegisterNode(
        work_service_pb2.RegisterNodeRequest(
            incarnation=incarnation,
            node=work_pb2.Node(
                name=node,
                kind=kind,
                tier=tier,
                memory_bytes=1,
                version="1",
                capabilities=capabilities,
            ),
        )
    )


async def leased(
    stubs: Stubs, node: str = NODE, *, incarnation: str = "i1", wait_millis: int = 5000
) -> work_pb2.Lease:
    response = await stubs.work.LeaseTask(
        work_service_pb2.LeaseTaskRequest(
            node=node, incarnation=incarnation, wait_millis=wait_millis
        )
    )
    lease: work_pb2.Lease = response.lease
    return lease


async def heartbeat(stubs: Stubs, lease: work_pb2.Lease, *reports: Any) -> Any:
    return await stubs.work.HeartbeatTask(
        work_service_pb2.HeartbeatTaskRequest(
            lease_id=lease.lease_id, fencing_epoch=lease.fencing_epoch, reports=reports
        )
    )


async def complete(stubs: Stubs, lease: work_pb2.Lease, *outputs: Any, **fields: Any) -> None:
    await stubs.work.CompleteTask(
        work_service_pb2.CompleteTaskRequest(
            lease_id=lease.lease_id, fencing_epoch=lease.fencing_epoch, outputs=outputs, **fields
        )
    )


async def fail(stubs: Stubs, lease: work_pb2.Lease, fault: fault_pb2.Fault) -> None:
    await stubs.work.FailTask(
        work_service_pb2.FailTaskRequest(
            lease_id=lease.lease_id, fencing_epoch=lease.fencing_epoch, fault=fault
        )
    )


async def an_output(stubs: Stubs, lease: work_pb2.Lease, path: str, **fields: Any) -> Any:
    response = await stubs.work.SignOutputs(
        work_service_pb2.SignOutputsRequest(
            lease_id=lease.lease_id,
            fencing_epoch=lease.fencing_epoch,
            files=[work_pb2.OutputFile(path=path, size_bytes=3, sha256="a" * 64)],
        )
    )
    uri = response.outputs[0].uri
    return work_pb2.OutputFile(path=path, uri=uri, size_bytes=3, sha256="a" * 64, **fields)


def started(number: int = 1) -> Any:
    return work_service_pb2.TaskReport(
        report_number=number,
        training_started=work_service_pb2.TrainingStarted(from_step=0, total_steps=10),
    )


async def watched(stubs: Stubs, run: str) -> list[Any]:
    request = event_service_pb2.WatchRunRequest(name=run)
    return [response.event async for response in stubs.events.WatchRun(request, timeout=20)]
