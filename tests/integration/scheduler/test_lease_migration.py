"""The migration to one lease machine: exports and runs under way go on, what has ended stays so."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from chassis import postgres
from chassis.identity import Role
from lexicon.faults import Fault, FaultCode, Stage
from scheduler import rows
from scheduler.domain.clock import Clock
from scheduler.domain.tasks import RunFault
from tests.support.export_calls import EXPORTS, People, made, state_of
from tests.support.nats import NatsServer
from tests.support.scheduler_calls import EXPORTER, complete, heartbeat, leased, registered
from tests.support.scheduling import ROOT, Neighbours, calling, scheduler_process
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

# The last migration before the lease machine.
BEFORE: Final = 8
NOW: Final = datetime.now(UTC)
ARTIFACT: Final = "projects/acme/artifacts/run-1"
OLD_NODE: Final = "nodes/old-exporter"
FAULT: Final = RunFault(
    code=FaultCode.RUNTIME_WORKER_LOST, message="Gone.", remedy="Wait.", stage=Stage.EXPORTING
)


def export_named(name: str) -> str:
    return f"projects/acme/exports/export-{name}"


async def put_export(connection: Any, name: str, state: str, **columns: Any) -> None:
    """An export as the code before the migration has written it."""
    values = {
        "name": export_named(name),
        "project": "acme",
        "artifact": ARTIFACT,
        "run": "projects/acme/runs/run-1",
        "base_model": "m",
        "quantization": f"Q_{name}",
        "state": state,
        "sequence": 3,
        "failures": 0,
        "fencing_epoch": 0,
        "not_before": NOW - timedelta(minutes=1),
        "create_time": NOW - timedelta(hours=1),
        "update_time": NOW - timedelta(minutes=5),
        **columns,
    }
    marks = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await connection.execute(
        f"INSERT INTO exports ({', '.join(values)}) VALUES ({marks})",  # noqa: S608 # our own names
        *values.values(),
    )


def a_lease(name: str, epoch: int, *, outcome: str | None, attempt: int = 1) -> dict[str, Any]:
    return {
        "lease_id": f"exportlease-{name}",
        "node": OLD_NODE,
        "incarnation": "i1",
        "attempt": attempt,
        "fencing_epoch": epoch,
        "expire_time": NOW + timedelta(hours=1),
        "outcome": outcome,
    }


async def put_exports(connection: Any) -> None:
    await connection.execute(
        "INSERT INTO export_sources (artifact, run, spec, snapshot, inputs, adapter, losses) "
        "VALUES ($1, 'projects/acme/runs/run-1', '', '', '', '', '{}')",
        ARTIFACT,
    )
    fault, end = rows.encoded(FAULT), {"end_time": NOW - timedelta(minutes=5)}
    await put_export(connection, "queued", "QUEUED", hub_token=b"sealed by another key")
    await put_export(
        connection,
        "leased",
        "EXPORTING",
        failures=1,
        **a_lease("leased", 2, outcome=None, attempt=2),
    )
    await put_export(
        connection,
        "retry",
        "QUEUED",
        failures=2,
        fault=fault,
        create_time=NOW - timedelta(minutes=30),
        **a_lease("retry", 4, outcome="LOST", attempt=2),
    )
    done = a_lease("done", 1, outcome="COMPLETED")
    await put_export(connection, "done", "COMPLETED", file=b"\x0a\x00", **done, **end)
    failed = a_lease("failed", 3, outcome="FAILED", attempt=3)
    await put_export(connection, "failed", "FAILED", failures=2, fault=fault, **failed, **end)
    await put_export(connection, "cancelled", "CANCELLED", **end)


async def put_run(connection: Any) -> None:
    """A run whose adapter is stored by its second lease and whose export waits."""
    name = "projects/acme/runs/run-2"
    await connection.execute(
        "INSERT INTO runs (name, project, version, state, stage, tier, plan, "
        "rate_micros_per_minute, hold_micros, budget_micros, vouched, gguf, fingerprint, spec, "
        "snapshot, quote, inputs, display_name, priority, sequence, fencing_epoch, attempt, task, "
        "clock, wall_micros, active_micros, billable_micros, submit_time, update_time) "
        "VALUES ($1, 'acme', 5, 'TRAINING', 'exporting', 'cpu', 'local', 1, 1, 1, true, true, 'f', "
        "'', '', '', '', 'x', 0, 9, 2, 2, 'EXPORT', $2, 0, 0, 0, $3, $3)",
        name,
        rows.encoded(Clock()),
        NOW - timedelta(hours=2),
    )
    for kind, state in (("TRAIN", "DONE"), ("EXPORT", "QUEUED")):
        await connection.execute(
            "INSERT INTO tasks (run, kind, state, project, tier, failures, queue_time, not_before) "
            "VALUES ($1, $2, $3, 'acme', 'export', 0, $4, $4)",
            name,
            kind,
            state,
            NOW - timedelta(hours=2),
        )
    for epoch, outcome in ((1, "LOST"), (2, "COMPLETED")):
        await connection.execute(
            "INSERT INTO leases (lease_id, run, kind, attempt, fencing_epoch, node, incarnation, "
            "lease_time, expire_time, report_number, report_time, end_time, outcome, "
            "resumed_from_step) VALUES ($1, $2, 'TRAIN', $3::int, $3::int, 'nodes/t', 'i', $4, $4, "
            "0, $4, $4, $5, 0)",
            f"lease-{epoch}",
            name,
            epoch,
            NOW - timedelta(hours=1),
            outcome,
        )


async def put_old_database(database_url: str, folder: Path) -> None:
    """A database as the code before the migration leaves it."""
    package = folder / "scheduler_before" / "migrations"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    for path in sorted((ROOT / "services" / "scheduler" / "migrations").glob("*.sql"))[:BEFORE]:
        shutil.copy(path, package)
    pool = await postgres.open_pool(database_url, schema="scheduler")
    assert await postgres.migrate(pool, schema="scheduler", package="scheduler_before") == BEFORE
    async with pool.acquire() as connection, connection.transaction():
        await put_exports(connection)
        await put_run(connection)
    await pool.close()


@asynccontextmanager
async def migrated(
    database_url: str, nats_server: NatsServer, fakes: Neighbours, folder: Path
) -> AsyncIterator[People]:
    await put_old_database(database_url, folder)
    fakes.hub.artifacts[ARTIFACT] = artifact_pb2.Artifact(name=ARTIFACT)
    process = scheduler_process(
        database_url=database_url,
        nats_url=nats_server.url("scheduler"),
        neighbours_address=fakes.address,
        folder=folder,
    )
    await process.start()
    try:
        async with (
            calling(process.address) as user,
            calling(process.address, Role.NODE, subject="nodes/*") as exporter,
        ):
            yield People(user=user, trainer=exporter, exporter=exporter, service=user)
    finally:
        process.stop()


@pytest.fixture
async def people(
    database_url: str,
    nats_server: NatsServer,
    fakes: Neighbours,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[People]:
    monkeypatch.syspath_prepend(tmp_path)
    async with migrated(database_url, nats_server, fakes, tmp_path) as found:
        yield found


async def test_what_was_told_of_each_export_is_told_still(people: People) -> None:
    expected = {
        "queued": (export_pb2.EXPORT_STATE_QUEUED, 0, ""),
        "leased": (export_pb2.EXPORT_STATE_EXPORTING, 2, OLD_NODE),
        "retry": (export_pb2.EXPORT_STATE_QUEUED, 2, OLD_NODE),
        "done": (export_pb2.EXPORT_STATE_COMPLETED, 1, OLD_NODE),
        "failed": (export_pb2.EXPORT_STATE_FAILED, 3, OLD_NODE),
        "cancelled": (export_pb2.EXPORT_STATE_CANCELLED, 0, ""),
    }
    for name, (state, attempt, node) in expected.items():
        export = await state_of(people, export_named(name))
        assert (export.state, export.attempt, export.node) == (state, attempt, node), name


async def test_an_exporter_goes_on_with_the_lease_that_it_has(people: People) -> None:
    held = work_pb2.Lease(lease_id="exportlease-leased", fencing_epoch=2)
    beat = await heartbeat(people.exporter, held)
    assert beat.directive == work_service_pb2.DIRECTIVE_CONTINUE
    old = work_pb2.Lease(lease_id="exportlease-leased", fencing_epoch=1)
    with pytest.raises(Fault) as caught:
        await heartbeat(people.exporter, old)
    assert caught.value.code is FaultCode.RUN_LEASE_LOST
    await made(people, held, quantization="Q_leased")
    done = await state_of(people, export_named("leased"))
    assert done.state == export_pb2.EXPORT_STATE_COMPLETED


async def test_what_waits_is_leased_run_first_then_by_age_with_the_next_epoch(
    people: People,
) -> None:
    await registered(people.exporter, EXPORTER, EXPORTS)
    told = []
    for quantization in ("", "Q_queued", "Q_retry"):
        lease = await leased(people.exporter, EXPORTER)
        told.append((lease.run, lease.attempt, lease.fencing_epoch))
        if quantization:
            assert list(lease.export.quantizations) == [quantization]
            await made(people, lease, quantization=quantization)
        else:
            await complete(people.exporter, lease)
    assert told == [
        ("projects/acme/runs/run-2", 1, 3),
        ("projects/acme/runs/run-1", 1, 1),
        ("projects/acme/runs/run-1", 3, 5),
    ]
    request = run_service_pb2.GetRunRequest(name="projects/acme/runs/run-2")
    run = (await people.user.runs.GetRun(request)).run
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert [attempt.fencing_epoch for attempt in run.attempts] == [1, 2]
    # Those that have ended are offered to nobody.
    assert not (await leased(people.exporter, EXPORTER, wait_millis=0)).lease_id


async def test_a_node_that_restarted_loses_what_it_held_before(people: People) -> None:
    await registered(people.exporter, OLD_NODE, EXPORTS, incarnation="i2")
    again = await state_of(people, export_named("leased"))
    assert again.state == export_pb2.EXPORT_STATE_QUEUED
    assert again.fault.code == "RUNTIME_WORKER_LOST"


async def test_a_token_for_the_hub_goes_with_the_end_of_its_export(
    people: People, database_url: str
) -> None:
    pool = await postgres.open_pool(database_url, schema="scheduler")
    query = "SELECT array_agg(owner) FROM hub_tokens"
    assert await pool.fetchval(query) == [export_named("queued")]
    await registered(people.exporter, EXPORTER, EXPORTS)
    await complete(people.exporter, await leased(people.exporter, EXPORTER))
    await made(people, await leased(people.exporter, EXPORTER), quantization="Q_queued")
    assert await pool.fetchval(query) is None
    await pool.close()
