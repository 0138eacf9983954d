"""Postgres and NATS beyond this machine: TLS in the URL, or no start."""

import pytest

from chassis.links import nats_tls, refuse_open_nats, refuse_open_postgres
from lexicon.faults import Fault, FaultCode

PASSWORD = "plantedPassword1"


@pytest.mark.parametrize(
    "rest",
    [
        "127.0.0.1:5432/db",
        "localhost/db",
        "[::1]:5432/db",
        "/db?host=/var/run/postgresql",
        "/db",
        "db.example.org:5432/db?sslmode=verify-full&sslrootcert=/ca.pem",
        "db.example.org/db?sslmode=require",
        "10.0.0.5,10.0.0.6:5433/db?sslmode=verify-ca",
    ],
)
def test_a_near_or_encrypted_database_is_taken(rest: str) -> None:
    """002-28"""
    refuse_open_postgres(f"postgresql://hub:{PASSWORD}@{rest}")


@pytest.mark.parametrize(
    "rest",
    [
        "db.example.org:5432/db",
        "10.0.0.5/db",
        "db.example.org/db?sslmode=prefer",
        "db.example.org/db?sslmode=disable",
        "db.example.org/db?sslmode=require&sslmode=disable",
        "127.0.0.1,10.0.0.5/db",
        "127.0.0.1/db?host=10.0.0.5",
        "127.0.0.1.example.org/db",
        "[2001:db8::1]:5432/db",
        "0.0.0.0/db",
    ],
)
def test_a_far_database_in_plain_text_is_refused(rest: str) -> None:
    """002-28: who reaches beyond loopback without TLS does not start; no password is shown."""
    with pytest.raises(Fault) as caught:
        refuse_open_postgres(f"postgresql://hub:{PASSWORD}@{rest}")
    assert caught.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED
    assert "sslmode=verify-full" in caught.value.remedy
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:4222", "localhost", "[::1]:4222"])
def test_a_bus_on_this_machine_is_taken(address: str) -> None:
    """002-28"""
    refuse_open_nats(f"nats://scheduler:{PASSWORD}@{address}")


@pytest.mark.parametrize("address", ["nats:4222", "10.0.0.5", "[2001:db8::1]:4222"])
def test_a_far_bus_is_taken_by_tls_only(address: str) -> None:
    """002-28"""
    far = f"{{}}://scheduler:{PASSWORD}@{address}"
    with pytest.raises(Fault) as caught:
        refuse_open_nats(far.format("nats"))
    assert caught.value.code is FaultCode.RUNTIME_AUTH_NOT_ENFORCED
    assert PASSWORD not in str(caught.value)
    refuse_open_nats(far.format("tls"))
    assert nats_tls(far.format("nats")) is None
    context = nats_tls(far.format("tls"))
    assert context is not None
    assert context.check_hostname


@pytest.mark.parametrize(
    "url", ["", "http://127.0.0.1:4222", "127.0.0.1:4222", "nats", "tls://[x", "tls:[x"]
)
def test_what_is_no_such_url_is_refused(url: str) -> None:
    """003-19"""
    for refuse in (refuse_open_nats, refuse_open_postgres):
        with pytest.raises(Fault) as caught:
            refuse(url)
        assert caught.value.code is FaultCode.CONFIG_INVALID
        assert caught.value.message
