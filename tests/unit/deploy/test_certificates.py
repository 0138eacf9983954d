"""The private authority of the stack in containers."""

from __future__ import annotations

import importlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from chassis import config, links
from deploy.docker import certificates, entry
from tests.tidy import tree

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TEMPLATE = (tree.ROOT / "deploy" / "nats" / "nats-server.conf").read_text(encoding="utf-8")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Everything written once."""
    certificates.write_all(tmp_path, TEMPLATE, now=NOW)
    return tmp_path


def environment(out: Path, service: str) -> dict[str, str]:
    """What the entry adds to the environment of a service."""
    return entry.read_settings((out / service / "env").read_text(encoding="utf-8"))


def test_every_service_shows_a_certificate_of_the_one_authority(out: Path) -> None:
    """attacks.md 7: another authority's certificate opens nothing."""
    other = certificates.make_authority(NOW)
    for service in certificates.SERVICES:
        shown = (out / service / "cert.pem").read_bytes()
        assert certificates.is_good(shown, (out / service / "ca.pem").read_bytes(), now=NOW)
        assert not certificates.is_good(shown, other.certificate, now=NOW)
        names = x509.load_pem_x509_certificate(shown).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        assert service in names.value.get_values_for_type(x509.DNSName)


def test_the_authority_signs_no_further_authority(out: Path) -> None:
    """A service's key must not be able to make certificates that others believe."""
    for service in certificates.SERVICES:
        shown = x509.load_pem_x509_certificate((out / service / "cert.pem").read_bytes())
        assert not shown.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_second_start_changes_nothing(out: Path) -> None:
    """New passwords would lock the services out of the database that is there."""
    before = {path: path.read_bytes() for path in out.rglob("*.pem")}
    passwords = {path: path.read_bytes() for path in out.rglob("*.password")}
    certificates.write_all(out, TEMPLATE, now=NOW + timedelta(days=1))
    assert {path: path.read_bytes() for path in out.rglob("*.pem")} == before
    assert {path: path.read_bytes() for path in out.rglob("*.password")} == passwords


def test_a_certificate_is_made_anew_before_it_ends(out: Path) -> None:
    """A stack that is started once a month never meets an expired one."""
    before = (out / "billing" / "cert.pem").read_bytes()
    late = NOW + timedelta(days=certificates.CERTIFICATE_DAYS - 10)
    certificates.write_all(out, TEMPLATE, now=late)
    after = (out / "billing" / "cert.pem").read_bytes()
    assert after != before
    assert certificates.is_good(after, (out / "billing" / "ca.pem").read_bytes(), now=late)


@pytest.mark.parametrize("service", certificates.SERVICES)
def test_compose_and_private_settings_are_all_that_a_service_needs(out: Path, service: str) -> None:
    """What the compose file and the init service set together makes a whole configuration."""
    document = yaml.safe_load((tree.ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    public = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value))
        for name, value in document["services"][service]["environment"].items()
    }
    # Built into the exporter's image.
    built_in = {"TUNESMITH_LLAMA_VENDOR": "/vendor"} if service == "exporter" else {}
    module = importlib.import_module(f"{service}.config")
    settings = config.load(module.Config, built_in | environment(out, service) | public)
    assert settings.listen == public["TUNESMITH_LISTEN"]


@pytest.mark.parametrize("worker", certificates.WORKERS)
def test_a_worker_holds_its_node_token_and_nothing_else(out: Path, worker: str) -> None:
    """architecture.md: a GPU node holds no credential but its node token."""
    assert set(environment(out, worker)) == {"TUNESMITH_NODE_TOKEN"}


def test_each_service_knows_its_own_passwords_only(out: Path) -> None:
    """One role per owning service, in the database and on the bus."""
    kept = json.loads((out / "authority" / "secrets.json").read_text(encoding="utf-8"))
    for service in certificates.SERVICES:
        text = (out / service / "env").read_text(encoding="utf-8")
        for name, secret in kept.items():
            if name.endswith(("_db", "_nats")):
                assert (secret in text) == name.startswith(f"{service}_"), (service, name)


def test_private_files_are_readable_by_their_owner_alone(out: Path) -> None:
    """Also on a host where the volume's folder is open."""
    for path in out.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_the_bus_gets_a_whole_configuration(out: Path) -> None:
    """No mark of the template is left, and JetStream's own names keep their dollar sign."""
    text = (out / "nats" / "nats-server.conf").read_text(encoding="utf-8")
    assert '"$JS.API.STREAM.INFO.TUNESMITH_RUN"' in text
    assert "$$" not in text
    assert "_nats" not in text


def test_database_and_bus_are_reached_by_tls_alone(out: Path) -> None:
    """002-28: what a service is told passes the rule that keeps it from starting otherwise."""
    for service in certificates.DATABASE_ROLES:
        url = environment(out, service)["TUNESMITH_DATABASE_URL"]
        assert "sslmode=verify-full" in url
        links.refuse_open_postgres(url)
    for service in ("scheduler", "billing"):
        links.refuse_open_nats(environment(out, service)["TUNESMITH_NATS_URL"])
    assert "tls {" in (out / "nats" / "nats-server.conf").read_text(encoding="utf-8")
    for server in ("nats", "postgres"):
        authority = (out / server / "ca.pem").read_bytes()
        assert certificates.is_good((out / server / "cert.pem").read_bytes(), authority, now=NOW)
    rules = (tree.ROOT / "deploy" / "postgres" / "pg_hba.conf").read_text(encoding="utf-8")
    far = [line.split() for line in rules.splitlines() if line.split()[-1:] == ["scram-sha-256"]]
    assert {line[0] for line in far} == {"hostssl"}
    assert set(far[0][2].split(",")) == set(certificates.DATABASE_ROLES)
