"""Nodes that vanish, cancelled runs, stale epochs: against the real process and database."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.nats import NatsServer
from tests.support.scheduler_calls import (
    NODE,
    an_output,
    complete,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
    watched,
)
from tests.support.scheduling import Neighbours, SchedulerProcess, calling, scheduler_process
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

TRAIN = work_pb2.TASK_KIND_TRAIN


async def until_past(moment: datetime) -> None:
    """Wait until a lease that ends then would have ended."""
    while datetime.now(UTC) <= moment:
        await asyncio.sleep(0.05)


async def test_a_silent_node_loses_its_run_and_its_epoch_is_refused(
    scheduler: SchedulerProcess,
) -> None:
    """000-27: both texts are seen when a node is lost; its late words are refused everywhere."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject="nodes/*") as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        first = await leased(node)
        await heartbeat(node, first, started())
        await registered(node, "nodes/trainer-2", TRAIN)
        second = await leased(node, "nodes/trainer-2", wait_millis=10_000)
        assert second.run == run.name
        assert second.attempt == 2
        assert second.fencing_epoch > first.fencing_epoch
        for refused in (
            heartbeat(node, first),
            complete(node, first),
            an_output(node, first, "adapter.zip"),
        ):
            with pytest.raises(Fault) as caught:
                await refused
            assert caught.value.code is FaultCode.RUN_LEASE_LOST
        shown = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert shown.state == run_pb2.RUN_STATE_RETRYING
        assert [warning.message for warning in shown.warnings] == [
            "Connection to GPU node lost",
            "Retrying after transient failure",
        ]
        assert [attempt.attempt for attempt in shown.attempts] == [1, 2]


async def test_a_restarted_node_loses_its_old_lease_at_once(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        first = await leased(node)
        await registered(node, NODE, TRAIN, incarnation="i2")
        second = await leased(node, incarnation="i2", wait_millis=0)
        assert (second.run, second.attempt) == (run.name, 2)
        with pytest.raises(Fault) as caught:
            await leased(node, incarnation="i1", wait_millis=0)
        assert caught.value.code is FaultCode.NODE_NOT_REGISTERED
        assert second.fencing_epoch == first.fencing_epoch + 1


async def test_an_answer_that_was_lost_is_given_again(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        await submitted(user)
        first = await leased(node)
        again = await leased(node)
        assert again.lease_id == first.lease_id


async def test_cancel_is_immediate_and_the_worker_is_told_to_abort(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """001-33: a cancelled run stays in the list and has no hub entry."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        request = run_service_pb2.CancelRunRequest(request_id="c1", name=run.name)
        cancelled = (await user.runs.CancelRun(request)).run
        assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
        assert (await user.runs.CancelRun(request)).run == cancelled
        beat = await heartbeat(node, lease)
        assert beat.directive == work_service_pb2.DIRECTIVE_ABORT
        output = work_pb2.OutputFile(
            path="adapter.zip",
            uri=f"object://runs/{run.name.rpartition('/')[2]}/1/{'a' * 16}/adapter.zip",
            sha256="a" * 64,
            artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
        )
        with pytest.raises(Fault) as caught:
            await complete(node, lease, output)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST
        assert not fakes.hub.registered
        listed = await user.runs.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/acme"))
        assert [each.name for each in listed.runs] == [run.name]
        events = await watched(user, run.name)
        assert [event.type for event in events].count("ended") == 1
        assert events[-1].type == "ended"


async def test_a_wrong_digest_does_not_complete_a_task(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        kind = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        output = await an_output(node, lease, "adapter.zip", artifact_kind=kind)
        fakes.hub.wrong_sha256.add(output.sha256)
        with pytest.raises(Fault) as caught:
            await complete(node, lease, output)
        assert caught.value.code is FaultCode.STORAGE_CHECKSUM_MISMATCH
        elsewhere = work_pb2.OutputFile(path="x", uri="object://runs/other/1/x", sha256="b" * 64)
        with pytest.raises(Fault) as caught:
            await complete(node, lease, elsewhere)
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
        shown = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert shown.state == run_pb2.RUN_STATE_TRAINING


async def test_a_loose_file_that_is_not_stored_does_not_complete_a_training(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """003-04, 001-41: found at the training's end, not hours later by the export; no hub entry."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        kind = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        archive = await an_output(node, lease, "adapter.zip", artifact_kind=kind)
        loose = await an_output(node, lease, "adapter/adapter_model.safetensors")
        fakes.hub.missing.add("adapter_model.safetensors")
        with pytest.raises(Fault) as caught:
            await complete(node, lease, archive, loose)
        assert caught.value.code is FaultCode.STORAGE_OBJECT_NOT_FOUND
        assert not fakes.hub.registered
        fakes.hub.missing.clear()
        await complete(node, lease, archive, loose)
        assert fakes.hub.verified == [loose.uri]
        shown = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert shown.artifact


async def test_a_restart_of_the_scheduler_costs_a_healthy_run_nothing(
    scheduler: SchedulerProcess,
) -> None:
    """Silence counts only while somebody listened: the pause is longer than a lease."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        beat = await heartbeat(node, lease)
        scheduler.kill()
        await until_past(beat.expire_time.ToDatetime(UTC))
        await scheduler.start()
        await asyncio.sleep(1.0)
        beat = await heartbeat(node, lease)
        assert beat.directive == work_service_pb2.DIRECTIVE_CONTINUE


async def test_two_schedulers_never_lease_a_run_twice(
    scheduler: SchedulerProcess,
    database_url: str,
    nats_server: NatsServer,
    fakes: Neighbours,
    tmp_path: Path,
) -> None:
    other = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=tmp_path,
    )
    await other.start()
    try:
        async with (
            calling(scheduler.address) as user,
            calling(scheduler.address, Role.NODE, subject="nodes/*") as one,
            calling(other.address, Role.NODE, subject="nodes/*") as two,
        ):
            runs = {(await submitted(user)).name for _ in range(12)}
            names = [f"nodes/n{number}" for number in range(20)]
            for name in names:
                await registered(one, name, TRAIN)
            asked = [
                leased((one, two)[index % 2], name, wait_millis=1200)
                for index, name in enumerate(names)
            ]
            given = [lease for lease in await asyncio.gather(*asked) if lease.run]
            assert sorted(lease.run for lease in given) == sorted(runs)
            assert {lease.attempt for lease in given} == {1}
    finally:
        other.stop()


async def test_a_plan_limits_how_many_runs_train_at_once(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.plan = "free"
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject="nodes/*") as node,
    ):
        await submitted(user)
        low = await submitted(user, priority=-5)
        high = await submitted(user, priority=5)
        for name in ("nodes/a", "nodes/b"):
            await registered(node, name, TRAIN)
        both = await asyncio.gather(
            leased(node, "nodes/a", wait_millis=800), leased(node, "nodes/b", wait_millis=800)
        )
        assert [lease.run for lease in both if lease.run] == [high.name]
        assert low.priority == -5


async def test_a_node_speaks_for_itself_only(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
        calling(scheduler.address, Role.NODE, subject="nodes/other") as other,
    ):
        await registered(node, NODE, TRAIN)
        await submitted(user)
        lease = await leased(node)
        with pytest.raises(Fault) as caught:
            await heartbeat(other, lease)
        assert caught.value.code is FaultCode.ACCESS_DENIED


async def test_a_cancel_that_crosses_with_the_end_gives_one_end_and_one_truth(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """The adapter is being registered when the user cancels: the run is whole or has no entry."""
    fakes.validator.gguf = False
    fakes.hub.register_gate.clear()
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, TRAIN)
        run = await submitted(user)
        lease = await leased(node)
        await heartbeat(node, lease, started())
        kind = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        output = await an_output(node, lease, "adapter.zip", artifact_kind=kind)
        ending = asyncio.create_task(complete(node, lease, output))
        await fakes.hub.registering.wait()
        late = run_service_pb2.CancelRunRequest(request_id="late", name=run.name)
        cancelling = asyncio.ensure_future(user.runs.CancelRun(late))
        # It may be refused at once or wait for the end; a moment lets it come to either.
        await asyncio.wait({cancelling}, timeout=0.2)
        fakes.hub.register_gate.set()
        with pytest.raises(Fault) as caught:
            await cancelling
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL
        await ending
        events = await watched(user, run.name)
        assert events[-1].ended.state == run_pb2.RUN_STATE_COMPLETED
        assert [event.type for event in events].count("ended") == 1


async def test_a_waiting_node_is_woken_by_a_submission_to_another_scheduler(
    scheduler: SchedulerProcess,
    database_url: str,
    nats_server: NatsServer,
    fakes: Neighbours,
    tmp_path: Path,
) -> None:
    other = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=tmp_path,
    )
    await other.start()
    try:
        async with (
            calling(scheduler.address) as user,
            calling(other.address, Role.NODE, subject=NODE) as node,
        ):
            await registered(node, NODE, TRAIN)
            asked = asyncio.create_task(leased(node, wait_millis=10_000))
            await asyncio.sleep(0.3)
            run = await submitted(user)
            assert (await asyncio.wait_for(asked, 5)).run == run.name
    finally:
        assert other.stop() == 0
