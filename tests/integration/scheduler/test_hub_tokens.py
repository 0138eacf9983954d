"""A user's token for the model hub on its way from the submission to the node, and nowhere else."""

import asyncpg
import pytest

from chassis.identity import Role
from tests.support.scheduler_calls import (
    EXPORTER,
    NODE,
    a_spec,
    an_output,
    complete,
    heartbeat,
    leased,
    registered,
    started,
    submitted,
    watched,
)
from tests.support.scheduling import Neighbours, SchedulerProcess, Stubs, calling
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

pytestmark = pytest.mark.integration

TOKEN = "hf_plantedPLANTEDplantedPLANTED012345"


async def everything(database_url: str) -> bytes:
    """All rows of the scheduler's schema, as text and as bytes."""
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'scheduler'"
        )
        found = b""
        for table in tables:
            name = table["table_name"]
            rows = await connection.fetch(f"SELECT * FROM scheduler.{name}")  # noqa: S608 (ours)
            for row in rows:
                for value in row.values():
                    found += value if isinstance(value, bytes) else str(value).encode()
    finally:
        await connection.close()
    return found


async def kept_count(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM scheduler.hub_tokens")
    finally:
        await connection.close()
    return count


async def to_the_export(trainer: Stubs, lease: work_pb2.Lease) -> None:
    await heartbeat(trainer, lease, started())
    archive = await an_output(
        trainer, lease, "adapter.zip", artifact_kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
    )
    result = work_service_pb2.TrainResult(samples=[run_pb2.Sample(prompt="a")] * 3)
    await complete(trainer, lease, archive, train=result)


async def test_a_token_reaches_check_training_and_export_and_is_gone_with_the_run(
    scheduler: SchedulerProcess, fakes: Neighbours, database_url: str
) -> None:
    """003-26: passed on, sealed at rest, never shown, logged or in an event."""
    fakes.validator.in_store = False
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
        calling(scheduler.address, Role.NODE, subject=EXPORTER) as exporter,
    ):
        run = await submitted(user, hub_token=TOKEN, request_id="once")
        assert fakes.validator.hub_tokens == [TOKEN]
        again = await submitted(user, hub_token="hf_renewed", request_id="once")
        assert again.name == run.name
        assert TOKEN.encode() not in await everything(database_url)
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
        assert lease.train.base.hub_token == TOKEN
        # The answer was lost: the same lease is given once more, with all that it needs.
        assert (await leased(trainer)).train.base.hub_token == TOKEN
        await to_the_export(trainer, lease)
        assert await kept_count(database_url) == 1
        await registered(exporter, EXPORTER, work_pb2.TASK_KIND_EXPORT)
        export = await leased(exporter, EXPORTER)
        assert export.export.base.hub_token == TOKEN
        proofs = work_service_pb2.ExportResult(proofs=[run_pb2.ExportProof(quantization="Q4_K_M")])
        await complete(exporter, export, export=proofs)
        ended = (await user.runs.GetRun(run_service_pb2.GetRunRequest(name=run.name))).run
        assert ended.state == run_pb2.RUN_STATE_COMPLETED
        assert await kept_count(database_url) == 0
        told = [str(ended), *(str(event) for event in await watched(user, run.name))]
        assert not [text for text in told if TOKEN in text]
    assert TOKEN.encode() not in await everything(database_url)
    assert TOKEN not in scheduler.log.read_text()


async def test_a_cancelled_run_and_a_check_keep_no_token(
    scheduler: SchedulerProcess, fakes: Neighbours, database_url: str
) -> None:
    """003-26"""
    fakes.validator.in_store = False
    async with calling(scheduler.address) as user:
        request = run_service_pb2.SubmitRunRequest(
            parent="projects/acme", spec=a_spec(), validate_only=True, hub_token=TOKEN
        )
        await user.runs.SubmitRun(request)
        assert await kept_count(database_url) == 0
        run = await submitted(user, hub_token=TOKEN)
        assert await kept_count(database_url) == 1
        await user.runs.CancelRun(
            run_service_pb2.CancelRunRequest(request_id="stop", name=run.name)
        )
        assert await kept_count(database_url) == 0
        again = await user.runs.RerunRun(
            run_service_pb2.RerunRunRequest(request_id="again", name=run.name, hub_token=TOKEN)
        )
        assert again.run.source_run == run.name
        assert await kept_count(database_url) == 1
    assert fakes.validator.hub_tokens == [TOKEN] * 3


async def test_a_token_that_no_task_needs_is_not_kept(
    scheduler: SchedulerProcess, database_url: str
) -> None:
    """003-26: a model of our own store is fetched without the hub."""
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        await submitted(user, hub_token=TOKEN)
        assert await kept_count(database_url) == 0
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        assert (await leased(trainer)).train.base.hub_token == ""


async def test_another_signing_key_opens_no_token_and_the_run_is_still_leased(
    scheduler: SchedulerProcess, fakes: Neighbours, database_url: str
) -> None:
    """003-26: the node then gets the hub's own refusal, which says what to do."""
    fakes.validator.in_store = False
    async with (
        calling(scheduler.address) as user,
        calling(scheduler.address, Role.NODE, subject=NODE) as trainer,
    ):
        run = await submitted(user, hub_token=TOKEN)
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("UPDATE scheduler.hub_tokens SET sealed = $1", b"x" * 40)
        finally:
            await connection.close()
        await registered(trainer, NODE, work_pb2.TASK_KIND_TRAIN)
        lease = await leased(trainer)
    assert (lease.run, lease.train.base.hub_token) == (run.name, "")
    assert "hub token cannot be opened" in scheduler.log.read_text()
