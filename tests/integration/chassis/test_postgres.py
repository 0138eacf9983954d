"""The pool, the migrations and the memory of requests against a real Postgres."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from chassis import postgres
from chassis.idempotency import Answers
from chassis.postgres import Pool
from lexicon.faults import Fault, FaultCode
from tests.support.postgres import PostgresServer
from tunesmith.api.run.v1 import run_service_pb2

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await postgres.open_pool(database_url, schema="scheduler")
    yield opened
    opened.terminate()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `room` with one migration; returns its migrations' folder."""
    migrations = tmp_path / "room" / "migrations"
    migrations.mkdir(parents=True)
    (tmp_path / "room" / "__init__.py").touch()
    (migrations / "0001_first.sql").write_text("CREATE TABLE things (id int);", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    sys.modules.pop("room", None)
    return migrations


def request_of(request_id: str, reason: str) -> run_service_pb2.StopRunRequest:
    return run_service_pb2.StopRunRequest(request_id=request_id, name=reason)


async def claim(pool: Pool, request_id: str, *, reason: str = "f", answer: bytes = b"a") -> bytes:
    """One mutation from its claim to its answer; the effect is the answer itself."""
    async with pool.acquire() as connection, connection.transaction():
        answers, request = Answers(connection), request_of(request_id, reason)
        known = await answers.recall("acme", request)
        if known is not None:
            return known
        await asyncio.sleep(0.01)
        await answers.remember("acme", request, answer)
        return answer


async def requests(pool: Pool) -> None:
    await postgres.migrate(pool, schema="scheduler", package="scheduler")


async def answer_of(pool: Pool) -> int | None:
    """1, or None while the database is away."""
    try:
        answer: int = await pool.fetchval("SELECT 1")
    except Exception as error:
        if not postgres.is_outage(error):
            raise
        return None
    return answer


async def test_the_pool_sees_its_own_schema(pool: Pool) -> None:
    assert await pool.fetchval("SHOW search_path") == "scheduler"
    assert await pool.fetchval("SHOW timezone") == "UTC"


async def test_a_wrong_password_is_said_clearly_and_not_shown(database_url: str) -> None:
    wrong = database_url.replace("tester-password", "hunter2hunter2")
    with pytest.raises(Fault) as refused:
        await postgres.open_pool(wrong, schema="scheduler")
    assert refused.value.code is FaultCode.CONFIG_INVALID
    assert "hunter2" not in refused.value.message + refused.value.remedy


async def test_a_database_that_does_not_come_is_an_outage() -> None:
    with pytest.raises(Fault) as refused:
        await postgres.open_pool(
            "postgresql://a:b@127.0.0.1:1/x", schema="scheduler", ready_seconds=0.2
        )
    assert refused.value.code is FaultCode.DEP_SERVICE_UNAVAILABLE


async def test_the_pool_heals_after_postgres_was_killed(
    pool: Pool, postgres_server: PostgresServer
) -> None:
    assert await pool.fetchval("SELECT 1") == 1
    postgres_server.process.kill()
    with pytest.raises(Exception) as failed:  # noqa: PT011 - any kind, as long as it is an outage.
        await pool.fetchval("SELECT 1")
    assert postgres.is_outage(failed.value)
    await postgres_server.process.start_again()
    async with asyncio.timeout(10):
        while await answer_of(pool) != 1:
            await asyncio.sleep(0.05)


async def test_mistakes_of_ours_are_no_outage(pool: Pool) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError) as failed:
        await pool.fetchval("SELEKT")
    assert not postgres.is_outage(failed.value)


async def test_migrations_run_once_also_when_replicas_start_together(
    pool: Pool, package: Path
) -> None:
    (package / "0002_second.sql").write_text("ALTER TABLE things ADD name text;", encoding="utf-8")
    counts = await asyncio.gather(
        *(postgres.migrate(pool, schema="scheduler", package="room") for _ in range(4))
    )
    assert sorted(counts) == [0, 0, 0, 2]
    await pool.execute("INSERT INTO things (id, name) VALUES (1, 'a')")


async def test_a_failed_migration_leaves_nothing_behind(pool: Pool, package: Path) -> None:
    (package / "0002_broken.sql").write_text(
        "CREATE TABLE half (id int); SELECT 1/0;", encoding="utf-8"
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        await postgres.migrate(pool, schema="scheduler", package="room")
    assert await pool.fetchval("SELECT to_regclass('half')") is None
    assert await pool.fetchval("SELECT count(*) FROM schema_migrations") == 1


async def test_a_migration_that_was_changed_afterwards_is_refused(
    pool: Pool, package: Path
) -> None:
    await postgres.migrate(pool, schema="scheduler", package="room")
    (package / "0001_first.sql").write_text("CREATE TABLE other (id int);", encoding="utf-8")
    with pytest.raises(Fault) as refused:
        await postgres.migrate(pool, schema="scheduler", package="room")
    assert refused.value.code is FaultCode.CONFIG_INVALID


async def test_a_gap_in_the_numbers_is_refused(pool: Pool, package: Path) -> None:
    (package / "0003_third.sql").write_text("SELECT 1", encoding="utf-8")
    with pytest.raises(Fault, match="without a gap"):
        await postgres.migrate(pool, schema="scheduler", package="room")


async def test_the_same_request_at_once_has_one_effect_and_one_answer(pool: Pool) -> None:
    await requests(pool)
    answers = await asyncio.gather(
        *(claim(pool, "r-1", answer=str(number).encode()) for number in range(8))
    )
    assert len(set(answers)) == 1
    assert await pool.fetchval("SELECT count(*) FROM requests") == 1


async def test_a_used_id_with_another_request_is_refused(pool: Pool) -> None:
    await requests(pool)
    await claim(pool, "r-1", reason="one")
    with pytest.raises(Fault) as refused:
        await claim(pool, "r-1", reason="two")
    assert refused.value.code is FaultCode.INPUT_REQUEST_ID_REUSED


async def test_a_rolled_back_request_may_be_made_again(pool: Pool) -> None:
    await requests(pool)
    with contextlib.suppress(ZeroDivisionError):
        async with pool.acquire() as connection, connection.transaction():
            await Answers(connection).recall("acme", request_of("r-1", "x"))
            raise ZeroDivisionError
    assert await claim(pool, "r-1", reason="other", answer=b"fresh") == b"fresh"


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\nb"])
async def test_ids_that_are_none_are_refused(pool: Pool, request_id: str) -> None:
    await requests(pool)
    with pytest.raises(Fault) as refused:
        await claim(pool, request_id)
    assert refused.value.code.value.startswith("INPUT_FIELD_")
