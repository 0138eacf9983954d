"""Each hot query of tasks and exports finds its rows by an index, with 100,000 rows in each table.

The tables are what a busy year leaves: nearly everything has ended, some work waits, some is held.
"""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest

from chassis import postgres
from chassis.postgres import Pool, Queries
from scheduler.domain.exports import KIND

pytestmark = pytest.mark.integration

ROW_COUNT: Final = 100_000
SPAN: Final = timedelta(seconds=4)
# What a query of one moment may read; a scan of a table would be a hundred times as much.
ROWS_MAX: Final = 2_000

# Of each table the last 200 are held by nodes, the 200 before them wait, the others have ended.
_FILL: Final = """
INSERT INTO export_sources (artifact, run, spec, snapshot, inputs, adapter, losses)
SELECT 'artifact-' || n, 'run', '', '', '', '', '{}' FROM generate_series(1, 1000) n;

INSERT INTO exports (
    name, project, artifact, run, base_model, quantization, state, sequence, file,
    create_time, update_time, end_time
)
SELECT 'projects/p' || n % 100 || '/exports/e' || n, 'p' || n % 100,
    'artifact-' || n % 1000 + 1, 'run', 'm', 'Q' || n,
    CASE WHEN n > 99800 THEN 'EXPORTING' WHEN n > 99600 THEN 'QUEUED' ELSE 'COMPLETED' END, 1,
    CASE WHEN n > 99600 THEN '' ELSE 'f' END::bytea, now(), now(),
    CASE WHEN n <= 99600 THEN now() END
FROM generate_series(1, 100000) n;

INSERT INTO tasks (
    owner, kind, state, project, tier, failures, queue_time, not_before, fencing_epoch, lease_id
)
SELECT 'projects/p' || n % 100 || '/exports/e' || n, 'STORED_EXPORT',
    CASE WHEN n > 99800 THEN 'LEASED' WHEN n > 99600 THEN 'QUEUED' ELSE 'DONE' END,
    'p' || n % 100, 'export', 0, now() + n * interval '1 s', now(),
    CASE WHEN n > 99600 AND n <= 99800 THEN 0 ELSE 1 END,
    CASE WHEN n > 99600 AND n <= 99800 THEN NULL ELSE 'lease-' || n END
FROM generate_series(1, 100000) n;

INSERT INTO leases (
    lease_id, owner, kind, attempt, fencing_epoch, node, incarnation, lease_time, expire_time,
    report_number, report_time, end_time, outcome, resumed_from_step
)
SELECT 'lease-' || n, 'projects/p' || n % 100 || '/exports/e' || n, 'STORED_EXPORT', 1, 1,
    'nodes/n' || n % 500, 'i', now(), now(), 0, now(), CASE WHEN n <= 99600 THEN now() END,
    CASE WHEN n <= 99600 THEN 'COMPLETED' END, 0
FROM generate_series(1, 100000) n WHERE n <= 99600 OR n > 99800;

ANALYZE exports;
ANALYZE tasks;
ANALYZE leases;
"""

EXPORT: Final = "projects/p42/exports/e4242"
CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "queued_tasks": (KIND, "export", 32),
    "lease_by_id": ("lease-99900",),
    "open_lease_of_node": ("nodes/n400", "i"),
    "leases_of_old_incarnations": ("nodes/n400", "i2"),
    "expired_leases": (100,),
    "candidates": ("EXPORT", "export", ["local"], [4], 32, []),
    "training_runs": (SPAN, SPAN, SPAN),
    "running_count": ("p42",),
    "attempts_of_runs": ([EXPORT],),
    "export": (EXPORT,),
    "lock_export_if_free": (EXPORT,),
    "open_export_of_type": ("artifact-243", "Q99942"),
    "page_of_exports": ("p42", 2**62, "", 50),
    "read_run": ("projects/p42/runs/r",),
    "page_of_nodes": (0, 100),
}


@pytest.fixture
async def full(database_url: str) -> AsyncIterator[Pool]:
    """The scheduler's schema with its tables full."""
    pool = await postgres.open_pool(database_url, schema="scheduler")
    await postgres.migrate(pool, schema="scheduler", package="scheduler")
    await pool.execute(_FILL)
    yield pool
    await pool.close()


async def test_each_hot_query_reads_what_it_answers_and_little_more(full: Pool) -> None:
    assert await full.fetchval("SELECT count(*) FROM tasks") == ROW_COUNT
    queries = Queries.load("scheduler")
    wrong = {}
    for name, arguments in CALLS.items():
        async with full.acquire() as connection, connection.transaction():
            statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {queries[name]}"
            plan = json.loads(await connection.fetchval(statement, *arguments))[0]["Plan"]
        count = sum(_read(node) for node in _nodes(plan))
        if count > ROWS_MAX:
            wrong[name] = count
    assert not wrong


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _read(node: dict[str, Any]) -> float:
    """Rows that a scan has looked at, those that its filter removed among them."""
    if "Scan" not in node["Node Type"]:
        return 0
    looked_at: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    loops: float = node["Actual Loops"]
    return looked_at * loops
