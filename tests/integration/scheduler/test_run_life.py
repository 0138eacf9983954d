"""A run from submission to its end, through the scheduler's own gRPC."""

import pytest

from chassis import activities
from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.scheduler_calls import (
    EXPORTER,
    NODE,
    an_output,
    complete,
    fail,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
    watched,
)
from tests.support.scheduling import Neighbours, SchedulerProcess, calling
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration


async def test_a_run_goes_from_submission_to_completed(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """001-09: Queued, Waiting for GPU, Training, Completed; 001-34: entry after the adapter."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
        calling(scheduler.address, Role.NODE, subject=EXPORTER) as exporter,
    ):
        run = await submitted(user)
        assert run.state == run_pb2.RUN_STATE_QUEUED
        assert fakes.billing.held == {run.name: 600_000}
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        await registered(exporter, EXPORTER, work_pb2.TASK_KIND_EXPORT)
        lease = await leased(trainer)
        assert lease.run == run.name
        assert lease.train.base.files[0].url == "http://objects/object://models/anvil/config"
        report = work_service_pb2.TaskReport(
            report_number=2, metrics=run_pb2.RunMetrics(step=1, total_steps=10, loss=2.5)
        )
        beat = await heartbeat(trainer, lease, started(), report)
        assert beat.directive == work_service_pb2.DIRECTIVE_CONTINUE
        assert beat.acknowledged_report_number == 2
        adapter = await an_output(trainer, lease, "adapter/adapter_config.json")
        archive = await an_output(
            trainer, lease, "adapter.zip", artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        )
        samples = [run_pb2.Sample(prompt=str(number)) for number in range(3)]
        result = work_service_pb2.TrainResult(
            metrics=run_pb2.RunMetrics(step=10, total_steps=10, progress_percent=100),
            samples=samples,
        )
        await complete(trainer, lease, adapter, archive, train=result)
        await complete(trainer, lease, adapter, archive, train=result)
        half = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert half.stage == fault_pb2.STAGE_EXPORTING
        assert half.artifact

        export = await leased(exporter, EXPORTER)
        assert [file.path for file in export.export.adapter] == ["adapter/adapter_config.json"]
        assert list(export.export.losses) == [2.5]
        bundle = await an_output(
            exporter,
            export,
            "gguf-Q4_K_M.zip",
            artifact_kind=artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE,
            quantization="Q4_K_M",
        )
        proofs = work_service_pb2.ExportResult(proofs=[run_pb2.ExportProof(quantization="Q4_K_M")])
        await complete(exporter, export, bundle, export=proofs)

        ended = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert ended.state == run_pb2.RUN_STATE_COMPLETED
        assert [sample.prompt for sample in ended.samples] == ["0", "1", "2"]
        assert ended.export_proofs[0].quantization == "Q4_K_M"
        assert [file.file_name for file in fakes.hub.registered] == [
            f"{run.name.rpartition('/')[2]}-lora.zip",
            f"{run.name.rpartition('/')[2]}-Q4_K_M-gguf.zip",
        ]
        events = await watched(user, run.name)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert events[-1].type == "ended"
        states = [event.state for event in events]
        assert list(dict.fromkeys(states)) == [
            run_pb2.RUN_STATE_QUEUED,
            run_pb2.RUN_STATE_WAITING_FOR_GPU,
            run_pb2.RUN_STATE_TRAINING,
            run_pb2.RUN_STATE_COMPLETED,
        ]


async def test_what_a_node_does_stands_on_the_run_until_it_trains(
    scheduler: SchedulerProcess,
) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject="nodes/*") as node,
    ):
        run = await submitted(user)
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(node)
        doing = [activities.report("downloading", float(percent)) for percent in (0, 1, 2, 40)]
        for number, report in enumerate(doing, 1):
            report.report_number = number
        await heartbeat(node, lease, *doing)
        request = run_service_pb2.GetRunRequest(name=run.name)
        shown = (await user.runs.GetRun(request)).run
        assert (shown.activity.text, shown.activity.percent) == ("downloading", 40.0)
        await heartbeat(node, lease, started(5))
        assert not (await user.runs.GetRun(request)).run.HasField("activity")
        await user.runs.CancelRun(run_service_pb2.CancelRunRequest(request_id="c1", name=run.name))
        told = [event.activity_changed for event in await watched(user, run.name)]
        assert [each.activity.percent for each in told if each.HasField("activity")] == [0.0, 40.0]


async def test_a_run_waits_in_the_queue_until_a_node_of_its_tier_is_free(
    scheduler: SchedulerProcess,
) -> None:
    """001-23: no node, or none of the tier, or none that is idle: Queued; then it proceeds."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject="nodes/*") as node,
    ):
        first, second = await submitted(user), await submitted(user)
        await registered(node, "nodes/other", work_pb2.TASK_KIND_TRAIN, tier="t4")
        assert not (await leased(node, "nodes/other", wait_millis=300)).run

        async def states() -> list[int]:
            names = [run_service_pb2.GetRunRequest(name=run.name) for run in (first, second)]
            return [(await user.runs.GetRun(name)).run.state for name in names]

        assert await states() == [run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_QUEUED]
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(node)
        assert lease.run == first.name
        assert await states() == [run_pb2.RUN_STATE_WAITING_FOR_GPU, run_pb2.RUN_STATE_QUEUED]
        await user.runs.CancelRun(
            run_service_pb2.CancelRunRequest(request_id="free the node", name=first.name)
        )
        assert (await leased(node)).run == second.name
        assert await states() == [run_pb2.RUN_STATE_CANCELLED, run_pb2.RUN_STATE_WAITING_FOR_GPU]


@pytest.mark.parametrize("verified", [True, False])
async def test_a_failed_run_explains_itself_and_is_refunded_when_it_was_vouched_for(
    scheduler: SchedulerProcess, fakes: Neighbours, verified: bool
) -> None:
    """001-06: Failed; what went wrong, where, and what to do; refundable for verified models."""
    fakes.validator.verified = verified
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        await heartbeat(trainer, lease, started())
        await fail(
            trainer, lease, fault_pb2.Fault(code="RUNTIME_GPU_OOM", message="CUDA out of memory.")
        )
        ended = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert ended.state == run_pb2.RUN_STATE_FAILED
        assert ended.fault.code == "RUNTIME_GPU_OOM"
        assert ended.fault.message == "CUDA out of memory."
        assert ended.fault.remedy
        assert ended.fault.stage == fault_pb2.STAGE_TRAINING
        assert ended.fault.node == NODE
        last = (await watched(user, run.name))[-1]
        assert last.ended.refundable is verified


async def test_a_red_finding_creates_nothing(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """000-30: a refused submission makes no run and holds no money; says `Invalid config`."""
    fault = fault_pb2.Fault(code="CONFIG_RANK_OUT_OF_RANGE", message="The rank is 0.")
    fakes.validator.findings.append(
        fault_pb2.Finding(severity=fault_pb2.SEVERITY_RED, fault=fault, field="lora.rank")
    )
    async with calling(scheduler.address) as user:
        with pytest.raises(Fault) as caught:
            await submitted(user)
        assert caught.value.code is FaultCode.CONFIG_RANK_OUT_OF_RANGE
        assert caught.value.message == "Invalid config: The rank is 0."
        listed = await user.runs.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/acme"))
        assert not listed.runs
    assert not fakes.billing.held
