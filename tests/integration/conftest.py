"""Fixtures of tests against real servers: one Postgres a session, one nats-server a test."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer, empty


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's Postgres; tests that kill it start it again."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def _session_database(postgres_server: PostgresServer) -> str:
    return asyncio.run(postgres_server.create_database())


@pytest.fixture
def database_url(_session_database: str) -> Iterator[str]:
    """An empty database; its role owns it and may make schemas. Emptied again after the test."""
    yield _session_database
    asyncio.run(empty(_session_database))


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A fresh nats-server with an empty store."""
    server = NatsServer(tmp_path / "nats-state")
    server.start()
    yield server
    server.remove()
