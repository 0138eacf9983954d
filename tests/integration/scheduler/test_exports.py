"""Exports of stored adapters, through the scheduler's own gRPC, its database and its bus."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chassis import activities
from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.export_calls import (
    EXPORTS,
    GGUF,
    People,
    asked,
    made,
    people,
    shown,
    state_of,
    trained,
)
from tests.support.nats import NatsServer
from tests.support.scheduler_calls import (
    EXPORTER,
    an_output,
    complete,
    fail,
    heartbeat,
    leased,
    registered,
    watched,
)
from tests.support.scheduling import (
    Neighbours,
    SchedulerProcess,
    calling,
    scheduler_process,
)
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.event.v1 import event_service_pb2
from tunesmith.api.export.v1 import export_pb2, export_service_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration


async def test_an_adapter_without_a_gguf_gets_one_later(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """001-05: both files are in the hub entry; the run stays as it was, and costs nothing more."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        assert run.state == run_pb2.RUN_STATE_COMPLETED
        held = dict(fakes.billing.held)
        export = await asked(all_, run.artifact)
        assert export.state == export_pb2.EXPORT_STATE_QUEUED
        assert (export.run, export.base_model) == (run.name, "tunesmith/anvil-3m")
        lease = await leased(all_.exporter, EXPORTER)
        assert lease.run == run.name
        assert list(lease.export.quantizations) == ["Q8_0"]
        assert [file.path for file in lease.export.adapter] == ["adapter/adapter_config.json"]
        assert lease.export.base.files[0].url == "http://objects/object://models/anvil/config"
        assert list(lease.export.losses) == [2.5]
        assert lease.export.snapshot.model_id == "tunesmith/anvil-3m"
        running = await state_of(all_, export.name)
        assert (running.state, running.attempt) == (export_pb2.EXPORT_STATE_EXPORTING, 1)
        beat = await heartbeat(all_.exporter, lease)
        assert beat.directive == work_service_pb2.DIRECTIVE_CONTINUE
        bundle = await made(all_, lease)
        assert bundle.uri.startswith(f"object://exports/{export.name.rpartition('/')[2]}/1/")
        done = await state_of(all_, export.name)
        assert done.state == export_pb2.EXPORT_STATE_COMPLETED
        assert done.proof.proven
        assert done.file.file_name == f"{run.name.rpartition('/')[2]}-Q8_0-gguf.zip"
        assert not done.file.uri
        kinds = [file.kind for file in fakes.hub.artifacts[run.artifact].files]
        assert kinds == [artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER, GGUF]
        assert await shown(all_, run.name) == run
        assert fakes.billing.held == held
        # The answer that was lost is given again.
        proof = run_pb2.ExportProof(quantization="Q8_0", proven=True)
        result = work_service_pb2.ExportResult(proofs=[proof])
        await complete(all_.exporter, lease, bundle, export=result)


async def test_a_run_that_failed_in_export_is_exported_after_its_record_is_gone(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """001-39, 001-40: the entry with the adapter alone is enough, also without the run's record."""
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        with pytest.raises(Fault) as caught:
            await asked(all_, run.artifact, request_id="too early")
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL
        lease = await leased(all_.exporter, EXPORTER)
        await fail(all_.exporter, lease, fault_pb2.Fault(code="EXPORT_NOOP_MERGE", message="No."))
        ended = await shown(all_, run.name)
        assert ended.state == run_pb2.RUN_STATE_FAILED
        request = run_service_pb2.DeleteRunRequest(request_id="d", name=run.name)
        await all_.user.runs.DeleteRun(request)
        export = await asked(all_, run.artifact)
        again = await leased(all_.exporter, EXPORTER)
        assert [file.path for file in again.export.adapter] == ["adapter/adapter_config.json"]
        await made(all_, again)
        assert (await state_of(all_, export.name)).state == export_pb2.EXPORT_STATE_COMPLETED
        with pytest.raises(Fault) as gone:
            await shown(all_, run.name)
        assert gone.value.code is FaultCode.RUN_NOT_FOUND


async def test_a_run_that_was_cancelled_in_export_is_exported(
    scheduler: SchedulerProcess,
) -> None:
    """001-40: the adapter of such a run is stored, so that any type can be made of it."""
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        request = run_service_pb2.CancelRunRequest(request_id="c", name=run.name)
        cancelled = (await all_.user.runs.CancelRun(request)).run
        assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
        export = await asked(all_, run.artifact)
        await made(all_, await leased(all_.exporter, EXPORTER))
        assert (await state_of(all_, export.name)).state == export_pb2.EXPORT_STATE_COMPLETED
        assert (await shown(all_, run.name)).state == run_pb2.RUN_STATE_CANCELLED


async def test_two_at_once_are_one_and_what_is_there_is_refused(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        found = await asyncio.gather(
            *(asked(all_, run.artifact, request_id=f"r{number}") for number in range(8))
        )
        assert len({export.name for export in found}) == 1
        other = await asked(all_, run.artifact, quantization="Q2_K")
        assert other.name != found[0].name
        assert (await asked(all_, run.artifact, request_id="r0")).name == found[0].name
        lease = await leased(all_.exporter, EXPORTER)
        await made(all_, lease)
        with pytest.raises(Fault) as caught:
            await asked(all_, run.artifact, request_id="again")
        assert caught.value.code is FaultCode.EXPORT_EXISTS
        anew = await asked(all_, run.artifact, request_id="anew", replace=True)
        assert anew.name != found[0].name
        listed = await all_.user.exports.ListExports(
            export_service_pb2.ListExportsRequest(
                parent="projects/acme", artifact=run.artifact, page_size=2
            )
        )
        assert [export.name for export in listed.exports] == [anew.name, other.name]
        rest = await all_.user.exports.ListExports(
            export_service_pb2.ListExportsRequest(
                parent="projects/acme",
                artifact=run.artifact,
                page_size=2,
                page_token=listed.next_page_token,
            )
        )
        assert [export.name for export in rest.exports] == [found[0].name]


async def test_a_lost_exporter_costs_an_attempt_and_three_end_it(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """A lease expires, another exporter takes over, the old one is refused; then a fault stays."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        export = await asked(all_, run.artifact)
        first = await leased(all_.exporter, EXPORTER)
        for attempt in (2, 3):
            # A new process of the node: the old one's lease is lost at once.
            await registered(all_.exporter, EXPORTER, EXPORTS, incarnation=f"i{attempt}")
            again = await leased(all_.exporter, EXPORTER, incarnation=f"i{attempt}")
            assert (again.attempt, again.fencing_epoch) == (attempt, attempt)
            with pytest.raises(Fault) as caught:
                await heartbeat(all_.exporter, first)
            assert caught.value.code is FaultCode.RUN_LEASE_LOST
            waiting = await state_of(all_, export.name)
            assert waiting.fault.code == "RUNTIME_WORKER_LOST"
        # Now silence: after the lease it is lost for the third time.
        async with asyncio.timeout(20):
            while True:
                ended = await state_of(all_, export.name)
                if ended.state == export_pb2.EXPORT_STATE_FAILED:
                    break
                await asyncio.sleep(0.1)
        assert ended.fault.code == "RUNTIME_GGUF_EXPORT_FAILED"
        assert ended.fault.metadata["cause"] == "RUNTIME_WORKER_LOST"
        assert ended.fault.category == fault_pb2.CATEGORY_EXPORT
        assert [file.kind for file in fakes.hub.artifacts[run.artifact].files] == [
            artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        ]
        fresh = await asked(all_, run.artifact, request_id="once more")
        assert fresh.name != export.name


async def test_quota_and_type_are_checked_before_anything_is_queued(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """000-34: sizes are named; nothing is queued."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        fakes.hub.quota_bytes = 1 << 20
        with pytest.raises(Fault) as caught:
            await asked(all_, run.artifact)
        assert caught.value.code is FaultCode.QUOTA_ARTIFACTS_EXCEEDED
        assert int(caught.value.metadata["required_bytes"]) > 3_000_000
        with pytest.raises(Fault) as unknown:
            await asked(all_, run.artifact, quantization="Q9")
        assert unknown.value.code is FaultCode.CONFIG_QUANTIZATION_UNKNOWN
        with pytest.raises(Fault) as missing:
            await asked(all_, "projects/acme/artifacts/nothing")
        assert missing.value.code is FaultCode.ARTIFACT_NOT_FOUND
        listed = await all_.user.exports.ListExports(
            export_service_pb2.ListExportsRequest(parent="projects/acme")
        )
        assert not listed.exports


async def test_a_deleted_hub_entry_ends_its_exports(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        running = await asked(all_, run.artifact)
        waiting = await asked(all_, run.artifact, quantization="Q2_K")
        lease = await leased(all_.exporter, EXPORTER)
        del fakes.hub.artifacts[run.artifact]
        await made(all_, lease)
        assert not (await leased(all_.exporter, EXPORTER, wait_millis=100)).lease_id
        for name in (running.name, waiting.name):
            ended = await state_of(all_, name)
            assert ended.state == export_pb2.EXPORT_STATE_FAILED
            assert ended.fault.code == "ARTIFACT_NOT_FOUND"
        assert run.artifact not in fakes.hub.artifacts


async def test_a_bundle_that_fits_no_more_ends_the_export_with_its_code(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        export = await asked(all_, run.artifact)
        lease = await leased(all_.exporter, EXPORTER)
        fakes.hub.refuses_files = FaultCode.QUOTA_ARTIFACTS_EXCEEDED
        await made(all_, lease)
        ended = await state_of(all_, export.name)
        assert ended.fault.code == "QUOTA_ARTIFACTS_EXCEEDED"


async def test_cancel_tells_the_exporter_to_abort_and_adds_nothing(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        export = await asked(all_, run.artifact)
        lease = await leased(all_.exporter, EXPORTER)
        request = export_service_pb2.CancelExportRequest(request_id="c", name=export.name)
        cancelled = (await all_.user.exports.CancelExport(request)).export
        assert cancelled.state == export_pb2.EXPORT_STATE_CANCELLED
        assert (await all_.user.exports.CancelExport(request)).export == cancelled
        beat = await heartbeat(all_.exporter, lease)
        assert beat.directive == work_service_pb2.DIRECTIVE_ABORT
        uri = f"object://exports/{export.name.rpartition('/')[2]}/1/{'a' * 16}/b.zip"
        late = work_pb2.OutputFile(
            path="b.zip", uri=uri, size_bytes=3, sha256="a" * 64, artifact_kind=GGUF,
            quantization="Q8_0",
        )  # fmt: skip
        with pytest.raises(Fault) as caught:
            await complete(all_.exporter, lease, late)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST
        assert len(fakes.hub.artifacts[run.artifact].files) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": "Q2_K"},
        {"artifact_kind": artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER},
        {"uri": "object://runs/run-1/1/aaaaaaaaaaaaaaaa/b.zip"},
    ],
)
async def test_an_exporter_that_names_another_file_is_refused(
    scheduler: SchedulerProcess, fakes: Neighbours, change: dict[str, Any]
) -> None:
    """Above all nothing under the run's own folder, which is swept."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        await asked(all_, run.artifact)
        lease = await leased(all_.exporter, EXPORTER)
        bundle = await an_output(
            all_.exporter, lease, "b.zip", artifact_kind=GGUF, quantization="Q8_0"
        )
        for name, value in change.items():
            setattr(bundle, name, value)
        for outputs in ([bundle], []):
            with pytest.raises(Fault) as caught:
                await complete(all_.exporter, lease, *outputs)
            assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


async def test_another_project_sees_nothing_of_it(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with (
        people(scheduler.address) as all_,
        calling(scheduler.address, project="other") as other,
    ):
        run = await trained(all_)
        export = await asked(all_, run.artifact)
        for call, request in (
            (other.exports.GetExport, export_service_pb2.GetExportRequest(name=export.name)),
            (
                other.exports.CancelExport,
                export_service_pb2.CancelExportRequest(request_id="x", name=export.name),
            ),
            (
                other.exports.CreateExport,
                export_service_pb2.CreateExportRequest(request_id="x", artifact=run.artifact),
            ),
            (
                other.exports.ListExports,
                export_service_pb2.ListExportsRequest(parent="projects/acme"),
            ),
        ):
            with pytest.raises(Fault) as caught:
                await call(request)
            assert caught.value.code is FaultCode.ACCESS_PROJECT_FORBIDDEN


async def test_it_is_told_of_in_the_log_and_the_run_is_not(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        before = await watched(all_.user, run.name)
        export = await asked(all_, run.artifact)
        lease = await leased(all_.exporter, EXPORTER)
        doing = activities.report("merging", 40.0)
        doing.report_number = 1
        for _ in range(2):
            await heartbeat(all_.exporter, lease, doing)
        assert (await state_of(all_, export.name)).activity.percent == 40.0
        await made(all_, lease)
        assert not (await state_of(all_, export.name)).HasField("activity")
        response = await all_.service.events.ListEvents(
            event_service_pb2.ListEventsRequest(run="-", page_size=1000)
        )
        told = [event for event in response.events if event.run == export.name]
        assert [event.sequence for event in told] == [1, 2, 3, 4]
        assert {event.type for event in told} == {"export_changed"}
        assert [event.export_changed.export.state for event in told] == [
            export_pb2.EXPORT_STATE_QUEUED,
            export_pb2.EXPORT_STATE_EXPORTING,
            export_pb2.EXPORT_STATE_EXPORTING,
            export_pb2.EXPORT_STATE_COMPLETED,
        ]
        assert told[2].export_changed.export.activity.text == "merging"
        assert await watched(all_.user, run.name) == before


@pytest.mark.parametrize("in_store", [False, True])
async def test_a_token_for_the_hub_reaches_the_exporter_and_nobody_else(
    scheduler: SchedulerProcess, fakes: Neighbours, in_store: bool
) -> None:
    """It is kept only where the base is fetched from the model hub."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        fakes.validator.in_store = in_store
        run = await trained(all_)
        export = await asked(all_, run.artifact, hub_token="hf_verysecret")
        lease = await leased(all_.exporter, EXPORTER)
        assert lease.export.base.hub_token == ("" if in_store else "hf_verysecret")
        assert "hf_verysecret" not in str(await state_of(all_, export.name))
    assert "hf_verysecret" not in scheduler.log.read_text()


async def test_a_scheduler_that_was_killed_goes_on_with_what_it_had(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, tmp_path: Path
) -> None:
    fakes.validator.gguf = False
    process = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=tmp_path,
    )
    await process.start()
    try:
        async with people(process.address) as all_:
            run = await trained(all_)
            export = await asked(all_, run.artifact)
            lease = await leased(all_.exporter, EXPORTER)
        process.kill()
        await process.start()
        async with (
            calling(process.address) as user,
            calling(process.address, Role.NODE, subject="nodes/*") as exporter,
        ):
            same = await leased(exporter, EXPORTER)
            assert same.lease_id == lease.lease_id
            all_ = People(user=user, trainer=exporter, exporter=exporter, service=user)
            await made(all_, same)
            assert (await state_of(all_, export.name)).state == export_pb2.EXPORT_STATE_COMPLETED
            # What it stored and did not register is swept by its own name.
            async with asyncio.timeout(20):
                while not fakes.hub.export_sweeps:
                    await asyncio.sleep(0.1)
            assert fakes.hub.export_sweeps[0].export == export.name
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("INTERNAL_UNEXPECTED", export_pb2.EXPORT_STATE_QUEUED),
        ("EXPORT_DISK_FULL", export_pb2.EXPORT_STATE_QUEUED),
        ("EXPORT_QUANTIZATION_BROKEN", export_pb2.EXPORT_STATE_FAILED),
    ],
)
async def test_what_only_operators_can_mend_reaches_them(
    scheduler: SchedulerProcess, fakes: Neighbours, code: str, state: export_pb2.ExportState
) -> None:
    """004-07: what may pass is tried again, and told of like an internal error of a run."""
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        export = await asked(all_, run.artifact)
        lease = await leased(all_.exporter, EXPORTER)
        await fail(all_.exporter, lease, fault_pb2.Fault(code=code, message="Oh."))
        told = await state_of(all_, export.name)
        assert told.state == state
        assert told.fault.code == code
    assert "operator alert" in scheduler.log.read_text()


async def test_runs_go_first(scheduler: SchedulerProcess, fakes: Neighbours) -> None:
    fakes.validator.gguf = False
    async with people(scheduler.address) as all_:
        run = await trained(all_)
        await asked(all_, run.artifact)
        fakes.validator.gguf = True
        second = await trained(all_)
        assert (await leased(all_.exporter, EXPORTER)).run == second.name
