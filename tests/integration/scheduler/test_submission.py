"""Submissions that are cut off, made twice, or refused; and what a user does with runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.nats import NatsServer
from tests.support.scheduler_calls import (
    NODE,
    a_spec,
    fail,
    leased,
    registered,
    submitted,
    watched,
)
from tests.support.scheduling import Neighbours, SchedulerProcess, calling, scheduler_process
from tunesmith.api.event.v1 import event_service_pb2
from tunesmith.api.fault.v1 import fault_pb2, fault_service_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

WAIT_SECONDS = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_kill_between_hold_and_run_leaves_neither(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, tmp_path: Path
) -> None:
    """The hold was made, the scheduler died before the run: the next start gives it back."""
    process = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=tmp_path,
        TUNESMITH_SUBMISSION_SECONDS="0.5",
    )
    await process.start()
    fakes.billing.gate.clear()
    try:
        async with calling(process.address) as user:
            asked = asyncio.create_task(submitted(user, request_id="once"))
            await asyncio.wait_for(fakes.billing.hold_made.wait(), WAIT_SECONDS)
            process.kill()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        fakes.billing.gate.set()
        (orphan,) = fakes.billing.held
        await process.start()
        await until(lambda: fakes.billing.released == [orphan])
        async with calling(process.address) as user:
            listed = await user.runs.ListRuns(
                run_service_pb2.ListRunsRequest(parent="projects/acme")
            )
            assert not listed.runs
            run = await submitted(user, request_id="once")
            assert run.name != orphan
            assert list(fakes.billing.held) == [run.name]
    finally:
        process.stop()


async def test_a_request_id_gives_one_run_however_often_it_is_sent(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    async with calling(scheduler.address) as user:
        asked = [submitted(user, request_id="r1") for _ in range(8)]
        names = {run.name for run in await asyncio.gather(*asked)}
        assert len(names) == 1
        assert set(fakes.billing.held) == names
        with pytest.raises(Fault) as caught:
            await submitted(user, request_id="r1", priority=3)
        assert caught.value.code is FaultCode.INPUT_REQUEST_ID_REUSED


async def test_too_little_credit_is_an_answer_and_leaves_nothing(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """000-30: `Failed to submit training job`; no run in the queue."""
    fakes.billing.poor = True
    async with calling(scheduler.address) as user:
        with pytest.raises(Fault) as caught:
            await submitted(user)
        assert caught.value.code is FaultCode.BILLING_FUNDS_INSUFFICIENT
        assert caught.value.message.startswith("Failed to submit training job: ")
        listed = await user.runs.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/acme"))
        assert not listed.runs


async def test_validate_only_creates_nothing(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    async with calling(scheduler.address) as user:
        response = await user.runs.SubmitRun(
            run_service_pb2.SubmitRunRequest(
                request_id="v", parent="projects/acme", spec=a_spec(), validate_only=True
            )
        )
        assert response.run.snapshot.model_id == "tunesmith/anvil-3m"
        assert response.quote.maximum.amount_micros == 600_000
        assert not response.run.name
    assert not fakes.billing.held


async def test_another_project_sees_and_touches_nothing(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, project="other") as stranger,
    ):
        run = await submitted(user)
        for refused in (
            stranger.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name)),
            stranger.runs.CancelRun(
                run_service_pb2.CancelRunRequest(request_id="x", name=run.name)
            ),
            stranger.runs.ListRuns(run_service_pb2.ListRunsRequest(parent="projects/acme")),
            submitted(stranger),
            watched(stranger, run.name),
        ):
            with pytest.raises(Fault) as caught:
                await refused
            assert caught.value.code is FaultCode.ACCESS_PROJECT_FORBIDDEN


async def test_runs_are_listed_newest_first_in_pages_and_keep_their_labels(
    scheduler: SchedulerProcess,
) -> None:
    """000-41: a new attempt sorts above the failed one; both can be tagged."""
    async with calling(scheduler.address) as user:
        names = [(await submitted(user, tags=["first"])).name for _ in range(3)]
        await user.runs.UpdateRun(
            run_service_pb2.UpdateRunRequest(
                request_id="u", name=names[0], add_tags=["kept"], remove_tags=["first"], priority=7
            )
        )
        request = run_service_pb2.ListRunsRequest(parent="projects/acme", page_size=2)
        page = await user.runs.ListRuns(request)
        request.page_token = page.next_page_token
        rest = await user.runs.ListRuns(request)
        assert [run.name for run in [*page.runs, *rest.runs]] == names[::-1]
        assert (list(rest.runs[0].tags), rest.runs[0].priority) == (["kept"], 7)
        tagged = run_service_pb2.ListRunsRequest(parent="projects/acme", tag="kept")
        found = await user.runs.ListRuns(tagged)
        assert [run.name for run in found.runs] == names[:1]


async def test_rerun_duplicate_and_compare(scheduler: SchedulerProcess) -> None:
    """000-38: Duplicate with one change shows one changed field; 000-40: the original stays."""
    async with calling(scheduler.address) as user:
        run = await submitted(user)
        copy = await user.runs.DuplicateRun(
            run_service_pb2.DuplicateRunRequest(name=run.name, changes={"training.epochs": "3"})
        )
        assert copy.spec.training.epochs == 3
        second = await user.runs.SubmitRun(
            run_service_pb2.SubmitRunRequest(
                request_id="copy", parent="projects/acme", spec=copy.spec
            )
        )
        compared = await user.runs.CompareRuns(
            run_service_pb2.CompareRunsRequest(name=run.name, other_name=second.run.name)
        )
        assert [(each.field, each.value_json, each.other_value_json) for each in
                compared.differences] == [("training.epochs", "2", "3")]  # fmt: skip
        again = await user.runs.RerunRun(
            run_service_pb2.RerunRunRequest(request_id="again", name=run.name)
        )
        assert again.run.source_run == run.name
        kept = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert kept.spec == a_spec()
        with pytest.raises(Fault) as caught:
            await user.runs.DuplicateRun(
                run_service_pb2.DuplicateRunRequest(name=run.name, changes={"training.x": "1"})
            )
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


async def test_a_rerun_takes_the_corrected_dataset_and_both_versions_are_recorded(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """000-39: Rerun of a failed run picks up the newest version; no duplicate is needed."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        await fail(trainer, lease, fault_pb2.Fault(code="DATASET_ROW_INVALID", message="Row 7."))
        fakes.validator.newest_version = 2
        again = await user.runs.RerunRun(
            run_service_pb2.RerunRunRequest(request_id="corrected", name=run.name)
        )
        assert again.run.source_run == run.name
        assert (await leased(trainer)).train.datasets[0].name.endswith("/versions/2")
        kept = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert kept.state == run_pb2.RUN_STATE_FAILED
        dataset = "projects/acme/datasets/habit"
        versions = [*kept.snapshot.dataset_versions, *again.run.snapshot.dataset_versions]
        assert versions == [f"{dataset}/versions/1", f"{dataset}/versions/2"]
        compared = await user.runs.CompareRuns(
            run_service_pb2.CompareRunsRequest(name=run.name, other_name=again.run.name)
        )
        assert [each.field for each in compared.differences] == ["datasets"]


async def test_a_deleted_run_is_gone_and_its_events_stay(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.SERVICE, subject="billing") as service,
    ):
        run = await submitted(user)
        delete = run_service_pb2.DeleteRunRequest(request_id="d", name=run.name)
        with pytest.raises(Fault) as caught:
            await user.runs.DeleteRun(delete)
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL
        await user.runs.CancelRun(run_service_pb2.CancelRunRequest(request_id="c", name=run.name))
        await user.runs.DeleteRun(delete)
        await user.runs.DeleteRun(delete)
        with pytest.raises(Fault) as caught:
            await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))
        assert caught.value.code is FaultCode.RUN_NOT_FOUND
        assert [event.type for event in await watched(user, run.name)] == [
            "submitted",
            "state_changed",
            "ended",
        ]
        log = await service.events.ListEvents(event_service_pb2.ListEventsRequest(run="-"))
        assert [event.sequence for event in log.events] == [1, 2, 3]
        rest = await service.events.ListEvents(
            event_service_pb2.ListEventsRequest(run="-", page_token=log.next_page_token)
        )
        assert not rest.events
        assert rest.next_page_token
        with pytest.raises(Fault) as caught:
            await user.events.ListEvents(event_service_pb2.ListEventsRequest(run="-"))
        assert caught.value.code is FaultCode.ACCESS_DENIED


async def test_nodes_and_faults_can_be_looked_at(scheduler: SchedulerProcess) -> None:
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, project="other") as stranger,
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, work_pb2.TASK_KIND_TRAIN)
        run = await submitted(user)
        await leased(node)
        (shown,) = (await user.nodes.ListNodes(work_service_pb2.ListNodesRequest())).nodes
        assert (shown.run, shown.state) == (run.name, work_pb2.NODE_STATE_LEASED)
        (hidden,) = (await stranger.nodes.ListNodes(work_service_pb2.ListNodesRequest())).nodes
        assert not hidden.run
        explained = await user.faults.ExplainFault(
            fault_service_pb2.ExplainFaultRequest(code="RUNTIME_GPU_OOM")
        )
        assert explained.explanation.grpc_status == "RESOURCE_EXHAUSTED"
        listed = await user.faults.ListFaults(fault_service_pb2.ListFaultsRequest(page_size=1000))
        codes = [each.code for each in listed.explanations]
        assert codes == sorted(codes)
        assert not listed.next_page_token


async def test_bad_input_is_refused_with_its_code(scheduler: SchedulerProcess) -> None:
    async with calling(scheduler.address) as user:
        request = run_service_pb2.SubmitRunRequest(parent="projects/acme", spec=a_spec())
        with pytest.raises(Fault) as caught:
            await user.runs.SubmitRun(request)
        assert caught.value.code is FaultCode.INPUT_FIELD_MISSING
        for bad in (
            {"tags": ["t"] * 33},
            {"tags": ["x" * 64]},
            {"priority": 101},
            {"display_name": "\n"},
        ):
            with pytest.raises(Fault) as caught:
                await submitted(user, **bad)
            assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
        with pytest.raises(Fault) as caught:
            await user.runs.ListRuns(
                run_service_pb2.ListRunsRequest(
                    parent="projects/acme", states=[run_pb2.RUN_STATE_UNSPECIFIED]
                )
            )
        assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
        with pytest.raises(Fault) as caught:
            await user.runs.GetRun(run_service_pb2.GetRunRequest(name="projects/acme/runs/../x"))
        assert caught.value.code is FaultCode.INPUT_NAME_INVALID
