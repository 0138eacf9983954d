"""Fixtures of tests against real servers: one Postgres a session, one nats-server a test."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's Postgres; tests that kill it start it again."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> str:
    """A fresh, empty database; its role owns it and may make schemas."""
    return asyncio.run(postgres_server.create_database())


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A fresh nats-server with an empty store."""
    server = NatsServer(tmp_path / "nats-state")
    server.start()
    yield server
    server.remove()
