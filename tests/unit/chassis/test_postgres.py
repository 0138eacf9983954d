"""What of Postgres' side needs no Postgres: named queries, request prints, versions of NATS."""

import errno

import asyncpg
import pytest

from chassis import idempotency, jetstream, postgres
from chassis.postgres import Queries
from lexicon.faults import Fault, FaultCode
from tunesmith.api.run.v1 import run_service_pb2

TEXT = """\
-- Claims a task.
-- name: claim_task
SELECT 1
FROM tasks; -- why

-- name: end_task
DELETE FROM tasks WHERE id = $1;
"""


def test_queries_are_read_by_their_names() -> None:
    queries = Queries.parse(TEXT)
    assert list(queries) == ["claim_task", "end_task"]
    assert queries["end_task"] == "DELETE FROM tasks WHERE id = $1"
    assert queries["claim_task"].startswith("SELECT 1\nFROM tasks")


def test_a_name_that_comes_twice_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        Queries.parse(TEXT + "-- name: end_task\nSELECT 1\n")


def test_the_print_of_a_request_leaves_its_id_out() -> None:
    def print_of(request_id: str, name: str) -> bytes:
        return idempotency.fingerprint(
            run_service_pb2.CancelRunRequest(request_id=request_id, name=name)
        )

    assert print_of("a", "projects/p/runs/r") == print_of("b", "projects/p/runs/r")
    assert print_of("a", "projects/p/runs/r") != print_of("a", "projects/p/runs/s")


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError("Multiple exceptions: [Errno 111] …"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(), False),
        (asyncpg.ConnectionDoesNotExistError(), True),
        (asyncpg.CannotConnectNowError(), True),
        (asyncpg.AdminShutdownError(), True),
        (asyncpg.TooManyConnectionsError(), True),
        (asyncpg.DeadlockDetectedError(), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.InterfaceError("another operation is in progress"), False),
        (asyncpg.UniqueViolationError(), False),
        (asyncpg.CheckViolationError(), False),
        (ValueError(), False),
    ],
)
def test_outages_are_told_from_mistakes(error: Exception, *, outage: bool) -> None:
    assert postgres.is_outage(error) is outage


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("2.9.10", False),
        ("2.10.22", False),
        ("2.11.15", False),
        ("2.11.16", True),
        ("2.12.6", False),
        ("2.12.7", True),
        ("2.13.9", False),
        ("2.14.0-RC.1", True),
        ("2.15.1", True),
        ("3.0.0", True),
        ("", False),
    ],
)
def test_servers_with_known_holes_are_refused(version: str, *, good: bool) -> None:
    """Attack list 9: the version floor is checked when we connect."""
    if good:
        jetstream.check_version(version)
    else:
        with pytest.raises(Fault) as refused:
            jetstream.check_version(version)
        assert refused.value.code is FaultCode.CONFIG_INVALID
