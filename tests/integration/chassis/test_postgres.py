"""The pool, the migrations and the memory of requests against a real Postgres."""

import pytest

from chassis import postgres

pytestmark = pytest.mark.integration


async def test_the_pool_sees_its_own_schema(database_url: str) -> None:
    pool = await postgres.open_pool(database_url, schema="scheduler")
    async with pool.acquire() as connection:
        assert await connection.fetchval("SHOW search_path") == "scheduler"
    await pool.close()
