"""What a worker may say without hurting more than its own run."""

import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.scheduler_calls import (
    NODE,
    an_output,
    complete,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
)
from tests.support.scheduling import SchedulerProcess, calling
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration


async def test_texts_that_no_database_takes_and_endless_ones_are_kept_short(
    scheduler: SchedulerProcess,
) -> None:
    nasty = "\x00'; DROP TABLE runs; --" + "x" * 100_000
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        warning = run_pb2.RunWarning(code=nasty, message=nasty)
        await heartbeat(
            node,
            lease,
            started(1),
            work_service_pb2.TaskReport(report_number=2, warning=warning, age_millis=2**60),
            work_service_pb2.TaskReport(
                report_number=3, metrics=run_pb2.RunMetrics(step=-5, loss=float("nan"))
            ),
        )
        await node.work.FailTask(
            work_service_pb2.FailTaskRequest(
                lease_id=lease.lease_id,
                fencing_epoch=lease.fencing_epoch,
                fault=fault_pb2.Fault(
                    code="RUNTIME_LOSS_NOT_FINITE", message=nasty, metadata={nasty[:99]: nasty}
                ),
            )
        )
        shown = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert shown.state == run_pb2.RUN_STATE_FAILED
        assert "\x00" not in shown.fault.message
        assert len(shown.fault.message) <= 2000
        assert len(shown.warnings[0].message) <= 2000


async def test_an_unknown_code_is_ours_and_tells_no_secret(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        fault = fault_pb2.Fault(code="MADE_UP", message="token hf_abcdefghijklmnopqrstuvwxyz0123")
        await node.work.FailTask(
            work_service_pb2.FailTaskRequest(
                lease_id=lease.lease_id, fencing_epoch=lease.fencing_epoch, fault=fault
            )
        )
        shown = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        # The platform's own fault is tried again.
        assert shown.state == run_pb2.RUN_STATE_RETRYING
        assert shown.attempts[0].fault.code == "INTERNAL_UNEXPECTED"
        assert "hf_abc" not in shown.attempts[0].fault.message


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a\x00b", ".hidden", "x" * 400])
async def test_a_path_that_leaves_its_place_gets_no_url(
    scheduler: SchedulerProcess, path: str
) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        await submitted(user)
        lease = await leased(node)
        with pytest.raises(Fault) as caught:
            await an_output(node, lease, path)
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


async def test_names_and_numbers_that_are_none_are_refused(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject="nodes/*") as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        for bad in ("\x00", "", "nodes/../x"):
            with pytest.raises(Fault) as caught:
                await leased(node, bad)
            assert caught.value.code is FaultCode.INPUT_NAME_INVALID
        zero = work_service_pb2.TaskReport(report_number=0, stage=fault_pb2.STAGE_SAVING)
        with pytest.raises(Fault) as caught:
            await heartbeat(node, lease, zero)
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
        with pytest.raises(Fault) as caught:
            await heartbeat(node, work_pb2.Lease(lease_id="\x00", fencing_epoch=1))
        assert caught.value.code is FaultCode.INPUT_NAME_INVALID
        kind = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
        output = await an_output(node, lease, "m.zip", artifact_kind=kind, quantization="../../x")
        with pytest.raises(Fault) as caught:
            await complete(node, lease, output)
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
