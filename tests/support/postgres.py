"""A real Postgres for tests: the local stack's own, with a fresh database for whoever asks."""

import itertools
import shutil
from pathlib import Path

import asyncpg

from deploy.local import places, postgres, postgres_files
from deploy.local.layout import open_layout
from tests.support.process import TestProcess

ROLE = "tester"
PASSWORD = "tester-password"
# Behind the stack's own rules; tests make databases of their own and connect by TCP.
ACCESS = f"host all {ROLE} 127.0.0.1/32 scram-sha-256\n"

# A killed process loses nothing by it, only a machine without power would.
SETTINGS = "fsync = off\n"


async def empty(url: str) -> None:
    """End whoever is still connected and drop every schema: faster than a database a test."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url, timeout=5)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            # An autovacuum worker is not ours to end; it yields to the drop by itself.
            "AND backend_type = 'client backend'"
        )
        rows = await connection.fetch(
            "SELECT quote_ident(nspname) AS name FROM pg_namespace "
            "WHERE nspname <> 'information_schema' AND NOT starts_with(nspname, 'pg_')"
        )
        for row in rows:
            await connection.execute(f"DROP SCHEMA {row['name']} CASCADE")
        await connection.execute("CREATE SCHEMA public")
    finally:
        await connection.close(timeout=5)


class PostgresServer:
    """One server with its own data folder under `state`."""

    def __init__(self, state: Path) -> None:
        self._layout = open_layout(state)
        install = postgres_files.find()
        postgres.prepare(self._layout, install)
        rules = self._layout.postgres_home / "data" / "pg_hba.conf"
        rules.write_text(rules.read_text(encoding="utf-8") + ACCESS, encoding="utf-8")
        settings = self._layout.postgres_home / "data" / "postgresql.conf"
        settings.write_text(settings.read_text(encoding="utf-8") + SETTINGS, encoding="utf-8")
        self.process = TestProcess(postgres.spec(self._layout, install))
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start it for the first time."""
        self.process.start()

    async def create_database(self) -> str:
        """The URL of a fresh, empty database that its role owns."""
        admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            host=str(self._layout.socket_folder),
            port=self._layout.ports["postgres"],
            user=postgres.SUPERUSER,
            database="template1",
            timeout=postgres.CONNECT_SECONDS,
        )
        try:
            if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", ROLE):
                await admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
            name = f"test_{next(self._numbers)}"
            await admin.execute(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE template0")
        finally:
            await admin.close(timeout=postgres.CONNECT_SECONDS)
        port = self._layout.ports["postgres"]
        return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{port}/{name}"

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.process.kill()
        shutil.rmtree(self._layout.postgres_home, ignore_errors=True)
        if self._layout.socket_folder != self._layout.postgres_home:
            shutil.rmtree(self._layout.socket_folder, ignore_errors=True)
        for folder in places.shared_folders():
            (folder / f"{self._layout.postgres_home.name}.owner").unlink(missing_ok=True)
