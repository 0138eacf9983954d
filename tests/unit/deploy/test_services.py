"""What each service is told, and what it is not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from chassis import config
from deploy.local import layout as layouts
from deploy.local import services
from deploy.local.layout import Layout
from deploy.local.places import Parts
from tests.tidy import tree

PARTS = Parts(
    stamp="s", llama_vendor="/vendor", nats_server="/n", nats_version="2.15.1", nats_source="t",
    postgres="/p",
)  # fmt: skip
CONTROL_PLANE = ("signing_key", "objects_key", "scheduler_db", "billing_db", "hub_db",
                 "scheduler_nats", "billing_nats", "operator_nats", "system_nats")  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A fresh state folder."""
    return layouts.open_layout(tmp_path / "state")


def environment(layout: Layout, name: str, **environ: str) -> dict[str, str]:
    """The whole environment of one service, started from a shell with these variables."""
    (spec,) = (s for s in services.specs(layout, PARTS, environ) if s.name == name)
    return dict(spec.environment)


@pytest.mark.parametrize("name", tree.SERVICES)
def test_every_service_finds_the_settings_it_needs(layout: Layout, name: str) -> None:
    """What the stack sets is what the service's own configuration asks for."""
    module = importlib.import_module(f"{name}.config")
    settings = config.load(module.Config, environment(layout, name))
    assert settings.listen == services.address(layout, name)


@pytest.mark.parametrize("worker", ["trainer", "exporter"])
def test_a_worker_holds_its_node_token_and_no_secret_of_the_control_plane(
    layout: Layout, worker: str
) -> None:
    """attacks.md 16: the trainer's environment is empty of control-plane secrets."""
    values = environment(layout, worker).values()
    for name in CONTROL_PLANE:
        assert not any(layout.secrets[name] in value for value in values), name
    assert environment(layout, worker)["TUNESMITH_NODE_TOKEN"].count(".") == 2


@pytest.mark.parametrize("owner", ["scheduler", "billing", "hub"])
def test_a_service_gets_its_own_database_role_only(layout: Layout, owner: str) -> None:
    """architecture.md: one role per owning service; no service reads another's schema."""
    text = "\n".join(environment(layout, owner).values())
    for role in ("scheduler", "billing", "hub"):
        assert (layout.secrets[f"{role}_db"] in text) == (role == owner)


def test_secrets_of_the_shell_are_not_handed_on(layout: Layout) -> None:
    """attacks.md 16: only what is listed reaches a service."""
    shell = {
        "AWS_SECRET_ACCESS_KEY": "planted-1",
        "GITHUB_TOKEN": "planted-2",
        "TUNESMITH_SIGNING_KEY": "planted-3",
        "TUNESMITH_TOKEN": "planted-4",
        "HF_TOKEN": "planted-5",
        "TUNESMITH_ALERT_WEBHOOK_URL": "https://hooks.example.org/planted-6",
    }
    for spec in services.specs(layout, PARTS, shell):
        text = "\n".join(spec.environment.values())
        reads_hub = spec.name in {"trainer", "exporter", "validator"}
        assert ("planted-5" in text) == reads_hub
        assert ("planted-6" in text) == (spec.name == "scheduler")
        for number in range(1, 5):
            assert f"planted-{number}" not in text, spec.name


def test_settings_of_the_caller_reach_the_services(layout: Layout) -> None:
    """A test may shorten the lease, an operator may switch on telemetry."""
    found = environment(
        layout, "scheduler", TUNESMITH_LEASE_SECONDS="3", OTEL_EXPORTER_OTLP_ENDPOINT="http://x:1"
    )
    assert found["TUNESMITH_LEASE_SECONDS"] == "3"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://x:1"


def test_everything_listens_on_loopback(layout: Layout) -> None:
    """002-31: nothing of the local stack is reachable from outside."""
    for spec in services.specs(layout, PARTS, {}):
        listening = [v for n, v in spec.environment.items() if n.endswith("LISTEN")]
        assert listening
        assert all(value.startswith("127.0.0.1:") for value in listening)


def test_the_working_folder_is_never_on_the_import_path(layout: Layout) -> None:
    """A file json.py in a folder with users' data must not be imported."""
    for spec in services.specs(layout, PARTS, {}):
        assert "-P" in spec.argv


def test_desk_services_start_before_what_calls_them(layout: Layout) -> None:
    """Workers lease from the scheduler, the gateway forwards to all desks."""
    level = {spec.name: spec.level for spec in services.specs(layout, PARTS, {})}
    assert set(level) == {
        "gateway", "scheduler", "validator", "billing", "hub", "trainer", "exporter"
    }  # fmt: skip
    desks = max(level[name] for name in ("scheduler", "validator", "billing", "hub"))
    assert all(level[name] > desks for name in ("gateway", "trainer", "exporter"))
