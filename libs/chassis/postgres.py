"""Postgres for a service: a pool bound to its schema, forward-only migrations, named queries."""

import asyncio
import errno
import hashlib
import importlib.resources
import random
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Self

import asyncpg

from chassis import telemetry
from chassis.links import refuse_open_postgres
from lexicon.faults import Fault, FaultCode

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

log = telemetry.logger(__name__)

CONNECT_SECONDS = 5.0
# How long a start waits for a database that is starting too.
READY_SECONDS = 60.0
RETRY_SECONDS_MAX = 2.0
COMMAND_SECONDS = 30.0
# The server's timeout is shorter than the client's, so that no lock outlives its client.
SERVER_SETTINGS = {
    "statement_timeout": "25s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
MIGRATION_SECONDS = 600.0
# Namespace of advisory locks of migrations; the second half of the key is the schema.
MIGRATION_LOCK = 7_203_101

_NETWORK_ERRORS = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ECONNREFUSED}
)
_SCHEMA = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MIGRATION_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_QUERY_MARK = re.compile(r"^-- name: ([a-z][a-z0-9_]*)[ \t]*$", re.MULTILINE)

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    file text NOT NULL,
    sha256 text NOT NULL,
    apply_time timestamptz NOT NULL DEFAULT now()
)
"""


async def open_pool(
    url: str, *, schema: str, max_size: int = 8, ready_seconds: float = READY_SECONDS
) -> Pool:
    """A pool whose connections see only this schema.

    Args:
        url: `postgresql://role:password@host:port/database`; never logged.
        max_size: most connections at once.
        ready_seconds: how long to wait for a database that does not answer yet.
    Raises:
        Fault: DEP_SERVICE_UNAVAILABLE when it does not answer in time, CONFIG_INVALID when it
            refuses the role, its password or the database, RUNTIME_AUTH_NOT_ENFORCED for one beyond
            this machine without TLS.
    """
    assert _SCHEMA.fullmatch(schema), schema
    refuse_open_postgres(url)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ready_seconds
    wait_seconds = 0.05
    while True:
        try:
            return await _connected_pool(url, schema=schema, max_size=max_size)
        except (
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
            ValueError,
        ) as error:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"Postgres refused the connection of {schema}: {type(error).__name__}.",
                remedy="Hint: check the role, the password and the database in "
                "TUNESMITH_DATABASE_URL.",
            ) from error
        except Exception as error:
            if not is_outage(error):
                raise
            if loop.time() + wait_seconds >= deadline:
                raise Fault(
                    FaultCode.DEP_SERVICE_UNAVAILABLE, "Postgres does not answer."
                ) from error
            log.info("waiting for postgres", reason=type(error).__name__)
            await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.0))
            wait_seconds = min(2 * wait_seconds, RETRY_SECONDS_MAX)


def is_outage(error: BaseException) -> bool:
    """Whether the database was unreachable, busy or restarting, so that a retry makes sense.

    When the connection broke during COMMIT, the transaction may have been committed; a retry must
    therefore be idempotent.
    """
    if isinstance(error, asyncpg.InterfaceError):
        # The same class reports misuse, which is a bug of ours and no outage.
        return "clos" in str(error)
    if type(error) is OSError:
        # asyncio's summary of several addresses has no number; a full disk has one of its own.
        return error.errno is None or error.errno in _NETWORK_ERRORS
    return isinstance(
        error,
        ConnectionError
        | TimeoutError
        | socket.gaierror
        | asyncpg.PostgresConnectionError
        | asyncpg.OperatorInterventionError
        | asyncpg.InsufficientResourcesError
        | asyncpg.TransactionRollbackError
        | asyncpg.LockNotAvailableError
        | asyncpg.InternalClientError,
    )


async def migrate(pool: Pool, *, schema: str, package: str) -> int:
    """Bring the schema up to date and return how many migrations were applied.

    Files are `migrations/0001_why.sql` of the package, numbered without a gap. Each runs once, in
    a transaction of its own with its row in `schema_migrations`; replicas that start together wait
    for each other.

    Raises:
        Fault: CONFIG_INVALID for a file that changed after it was applied, for a gap in the
            numbers, or when the database is ahead of this code in a way it cannot know.
    """
    assert _SCHEMA.fullmatch(schema), schema
    migrations = _migrations_of(importlib.resources.files(package) / "migrations")
    async with pool.acquire() as connection:
        await connection.execute(f"SET statement_timeout = {int(MIGRATION_SECONDS * 1000)}")
        key = int.from_bytes(hashlib.sha256(schema.encode()).digest()[:4], "big", signed=True)
        await connection.execute(
            "SELECT pg_advisory_lock($1, $2)", MIGRATION_LOCK, key, timeout=MIGRATION_SECONDS
        )
        try:
            return await _apply(connection, schema, migrations)
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1, $2)", MIGRATION_LOCK, key)
            await connection.execute("RESET statement_timeout")


class Queries(Mapping[str, str]):
    """The named statements of a package's `queries.sql`."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        self._statements = dict(statements)

    @classmethod
    def load(cls, package: str) -> Self:
        """Read `queries.sql`: each statement follows a line `-- name: claim_task`."""
        text = (importlib.resources.files(package) / "queries.sql").read_text(encoding="utf-8")
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The statements of such a text; a duplicate name is a bug of ours."""
        parts = _QUERY_MARK.split(text)
        statements: dict[str, str] = {}
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            assert name not in statements, name
            assert body.strip(), name
            statements[name] = body.strip().removesuffix(";")
        return cls(statements)

    def __getitem__(self, name: str) -> str:
        return self._statements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)


async def _connected_pool(url: str, *, schema: str, max_size: int) -> Pool:
    pool = await asyncpg.create_pool(
        url,
        # With a floor the pool would try to restore it all through an outage, and print each try.
        min_size=0,
        max_size=max_size,
        timeout=CONNECT_SECONDS,
        command_timeout=COMMAND_SECONDS,
        server_settings={
            **SERVER_SETTINGS,
            "search_path": schema,
            "application_name": f"tunesmith-{schema}",
        },
    )
    try:
        await pool.fetchval("SELECT 1")
    except BaseException:
        pool.terminate()
        raise
    return pool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Migration:
    number: int
    file: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def _migrations_of(folder: Traversable) -> list[_Migration]:
    found: list[_Migration] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        match = _MIGRATION_FILE.fullmatch(entry.name)
        if match is not None:
            text = entry.read_text(encoding="utf-8")
            found.append(_Migration(number=int(match.group(1)), file=entry.name, text=text))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise Fault(FaultCode.CONFIG_INVALID, "Migrations must be numbered from 1 without a gap.")
    return found


async def _apply(connection: Connection, schema: str, migrations: list[_Migration]) -> int:
    # A role that was given its schema may not be allowed to make one.
    if await connection.fetchval("SELECT to_regnamespace($1)", schema) is None:
        await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.execute(_TABLE)
    rows = await connection.fetch("SELECT number, sha256 FROM schema_migrations")
    applied: dict[int, str] = {row["number"]: row["sha256"] for row in rows}
    count = 0
    for migration in migrations:
        if migration.number in applied:
            if applied[migration.number] != migration.sha256:
                raise Fault(
                    FaultCode.CONFIG_INVALID,
                    f"Migration {migration.file} was changed after it was applied.",
                    remedy="Put the file back as it was, and add a new migration.",
                )
            continue
        async with connection.transaction():
            await connection.execute(migration.text, timeout=MIGRATION_SECONDS)
            await connection.execute(
                "INSERT INTO schema_migrations (number, file, sha256) VALUES ($1, $2, $3)",
                migration.number,
                migration.file,
                migration.sha256,
            )
        log.info("migration applied", schema=schema, file=migration.file)
        count += 1
    return count
