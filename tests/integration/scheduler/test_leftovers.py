"""Leftovers of runs: swept after the end and again later, through outages and kills."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.scheduler_calls import (
    NODE,
    a_spec,
    an_output,
    complete,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
)
from tests.support.scheduling import Neighbours, SchedulerProcess, Stubs, calling
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

VERSION = "projects/acme/datasets/habit/versions/1"


async def until(is_so: Callable[[], bool], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.05)


async def cancelled(user: Stubs, run: str) -> None:
    await user.runs.CancelRun(
        run_service_pb2.CancelRunRequest(request_id=f"cancel {run}", name=run)
    )


async def stored_checkpoint(trainer: Stubs, lease: work_pb2.Lease, step: int, number: int) -> str:
    file = await an_output(trainer, lease, f"checkpoints/{step}/state")
    checkpoint = work_service_pb2.CheckpointStored(step=step, files=[file])
    report = work_service_pb2.TaskReport(report_number=number, checkpoint=checkpoint)
    await heartbeat(trainer, lease, report)
    return str(file.uri)


async def test_an_ended_run_is_swept_until_nothing_comes_any_more(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """Also when its record is deleted at once; each sweep has a request id of its own."""
    fakes.hub.again_after = timedelta(milliseconds=200)
    fakes.hub.removed_counts = [3, 1, 0]
    async with calling(scheduler.address) as user:
        run = await submitted(user)
        assert fakes.hub.holds == {run.name: [VERSION]}
        await cancelled(user, run.name)
        await user.runs.DeleteRun(run_service_pb2.DeleteRunRequest(request_id="d", name=run.name))
        await until(lambda: len(fakes.hub.sweeps) == 3)
        # A later run is swept three times as well, while the first one is not swept again.
        fakes.hub.removed_counts = [3, 1, 0]
        later = await submitted(user, request_id="later")
        await cancelled(user, later.name)
        await until(lambda: len(fakes.hub.sweeps) >= 6)
    assert [each.run for each in fakes.hub.sweeps] == [run.name] * 3 + [later.name] * 3
    assert len({each.request_id for each in fakes.hub.sweeps}) == 6
    assert fakes.hub.holds == {}


async def test_the_loose_files_of_the_adapter_are_named_to_the_sweep(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """A5: what a later export needs is not swept."""
    fakes.validator.gguf = False
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        await heartbeat(trainer, lease, started())
        loose = await an_output(trainer, lease, "adapter/adapter_config.json")
        archive = await an_output(
            trainer, lease, "adapter.zip", artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        )
        await complete(trainer, lease, loose, archive, train=work_service_pb2.TrainResult())
        await until(lambda: bool(fakes.hub.sweeps))
        assert list(fakes.hub.sweeps[0].adapter_uris) == [loose.uri]
        assert not fakes.hub.sweeps[0].only_uris
        ended = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert ended.state == run_pb2.RUN_STATE_COMPLETED


async def test_a_hub_that_is_away_delays_the_sweep_and_not_the_end(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """A kill in between loses nothing; while one run rests, others are swept."""
    async with calling(scheduler.address) as user:
        fakes.hub.is_away = True
        run = await submitted(user)
        await cancelled(user, run.name)
        ended = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert ended.state == run_pb2.RUN_STATE_CANCELLED
        await until(lambda: bool(fakes.hub.sweeps))
        fakes.hub.is_away = False
        scheduler.kill()
        await scheduler.start()
    async with calling(scheduler.address) as user:
        other = await submitted(user)
        await user.runs.CancelRun(run_service_pb2.CancelRunRequest(request_id="o", name=other.name))
    await until(lambda: fakes.hub.sweeps[-1].run == other.name)
    assert fakes.hub.holds.keys() == {run.name}
    await until(lambda: fakes.hub.sweeps[-1].run == run.name, seconds=30)
    assert {each.request_id for each in fakes.hub.sweeps if each.run == run.name} == {
        f"sweep {run.name.rpartition('/')[2]} 1"
    }
    assert fakes.hub.holds == {}


async def test_superseded_checkpoints_of_a_run_under_way_are_removed(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """The newest stays and as many before it as the recipe says, which is none here."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        await heartbeat(trainer, lease, started())
        uris = [await stored_checkpoint(trainer, lease, step, step + 1) for step in (1, 2, 3)]
        removed: list[str] = []

        def both_are_gone() -> bool:
            removed[:] = [uri for each in fakes.hub.sweeps for uri in each.only_uris]
            return len(removed) == 2

        await until(both_are_gone)
        assert set(removed) == set(uris[:2])
        assert fakes.hub.holds == {run.name: [VERSION]}
        fakes.hub.sweeps.clear()
        await cancelled(user, run.name)
        await until(lambda: bool(fakes.hub.sweeps))
        assert not fakes.hub.sweeps[0].only_uris


async def test_another_attempt_gets_the_checkpoint_before_the_newest_too(
    scheduler: SchedulerProcess,
) -> None:
    """002-13: it goes on from there where the newest cannot be used, and that is free."""
    spec = a_spec()
    spec.training.checkpoint_keep_count = 1
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user, spec=spec)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        assert not lease.train.earlier_checkpoints
        await heartbeat(trainer, lease, started())
        for step in (1, 2, 3):
            await stored_checkpoint(trainer, lease, step, step + 1)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN, incarnation="i2")
        again = await leased(trainer, incarnation="i2", wait_millis=20_000)
        assert [file.path for file in again.train.checkpoint] == ["checkpoints/3/state"]
        (earlier,) = again.train.earlier_checkpoints
        assert [file.path for file in earlier.files] == ["checkpoints/2/state"]
        assert all(file.url for file in earlier.files)
        began = work_service_pb2.TrainingStarted(from_step=2, total_steps=10)
        report = work_service_pb2.TaskReport(report_number=1, training_started=began)
        await heartbeat(trainer, again, report)
        request = run_service_pb2.GetRunRequest(name=run.name)
        shown = (await user.runs.GetRun(request)).run
        assert shown.state == run_pb2.RUN_STATE_TRAINING
        assert shown.attempts[-1].resumed_from_step == 2


async def test_a_submission_that_fails_lets_go_of_its_datasets(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """No run, no hold: neither of money nor of datasets."""
    fakes.billing.poor = True
    async with calling(scheduler.address) as user:
        with pytest.raises(Fault) as caught:
            await submitted(user)
    assert caught.value.code is FaultCode.BILLING_FUNDS_INSUFFICIENT
    await until(lambda: bool(fakes.hub.sweeps))
    assert fakes.hub.holds == {}


async def test_a_dataset_that_is_deleted_after_the_check_refuses_the_run(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """000-33: between the check and the run there is no gap; nothing is held or made."""
    fakes.hub.deleted_versions.add(VERSION)
    async with calling(scheduler.address) as user:
        with pytest.raises(Fault) as caught:
            await submitted(user)
        listed = await user.runs.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/acme"))
    assert caught.value.code is FaultCode.DATASET_DELETED
    assert not listed.runs
    assert not fakes.billing.held
