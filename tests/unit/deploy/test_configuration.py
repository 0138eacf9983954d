"""What the configuration files promise: the bus, the images, the compose file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import llama_build
from tests.tidy import tree

DOCKER = tree.ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
NATS = (tree.ROOT / "deploy" / "nats" / "nats-server.conf").read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    """The compose file as a document, anchors resolved."""
    text = (tree.ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def without_comments(text: str) -> str:
    """Comments explain what is left out, and would be found otherwise."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def test_the_bus_writes_through_before_it_acknowledges() -> None:
    """attacks.md: the default writes through every two minutes."""
    assert re.search(r"jetstream \{[^}]*sync_interval: always", without_comments(NATS))


@pytest.mark.parametrize(
    "word", ["websocket", "no_auth_user", "leafnodes", "cluster", "gateway", "http"]
)
def test_the_bus_opens_no_door_with_known_holes(word: str) -> None:
    """attacks.md 9: no websocket, no no_auth_user, no listener but the one for clients."""
    assert word not in without_comments(NATS)


def test_every_user_of_the_bus_has_a_password_and_its_own_subjects() -> None:
    """attacks.md 9: only the scheduler may publish run events; nobody may use everything."""
    body = without_comments(NATS)
    users = re.findall(r"user: (\w+)", body)
    assert users == ["scheduler", "billing", "events", "operator", "system"]
    assert body.count("password:") == len(users)
    scheduler, billing, events, operator = re.split(r"user: \w+\n", body)[1:5]
    assert '"tunesmith.run.v1.>"' in scheduler
    publish = events.split("subscribe")[0]
    for text in (billing, publish, operator):
        assert "tunesmith.run.v1" not in text
    for text in (billing, events, operator.split("subscribe")[0]):
        assert "tunesmith.operator.v1" not in text
    assert "TUNESMITH_OPERATOR" not in billing + events
    assert '">"' not in body


def test_published_ports_are_bound_to_loopback() -> None:
    """002-31: compose binds loopback by default."""
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", [])
    ]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_every_service_beyond_loopback_has_certificates() -> None:
    """002-28: a service that listens for others without them refuses to start."""
    for name, service in compose()["services"].items():
        settings = service.get("environment", {})
        if "TUNESMITH_LISTEN" in settings:
            for part in ("CERT", "KEY", "CA"):
                assert settings[f"TUNESMITH_TLS_{part}"].startswith("/run/tunesmith/"), name


def test_no_secret_stands_in_the_compose_file() -> None:
    """Secrets are made by the init service and never leave the volumes."""
    for name, service in compose()["services"].items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"KEY$|TOKEN|PASSWORD$|_URL$", variable)
            harmless = variable in {"TUNESMITH_TLS_KEY", "TUNESMITH_PUBLIC_HTTP_URL",
                                    "TUNESMITH_OBJECTS_URL"}  # fmt: skip
            # What the caller's environment says, and nothing when it says nothing.
            is_passed_on = value == f"${{{variable}:-}}"
            assert not secret or harmless or is_passed_on, (name, variable, value)


def test_each_private_volume_is_mounted_by_one_service_and_by_init() -> None:
    """A trainer that is taken over finds no other service's key."""
    mounts: dict[str, list[str]] = {}
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            if isinstance(volume, str) and volume.startswith("private-"):
                mounts.setdefault(volume.split(":")[0], []).append(name)
    assert len(mounts) == len(tree.SERVICES) + 2
    for volume, users in mounts.items():
        assert sorted(users) == sorted(["init", volume.removeprefix("private-")])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_without_rights_and_tell_their_health(path: Path) -> None:
    """Pinned by hash, not root, with a health check and a base that can be replaced."""
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE=\S+:\S+$", text, re.MULTILINE)
    assert "--require-hashes" in text
    assert text.rindex("USER 10001") < text.index("ENTRYPOINT")
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_holds_libs_and_its_own_service_only(path: Path) -> None:
    """architecture.md: each image copies libs/ and its own service folder only."""
    text = path.read_text(encoding="utf-8")
    own = path.name.split(".")[0].replace("service", "${SERVICE}")
    assert re.findall(r"^COPY services/(\S+) ", text, re.MULTILINE) == [own]
    assert re.findall(r"^COPY (libs\S*) ", text, re.MULTILINE) == ["libs"]


def test_the_exporter_image_has_the_build_tools_before_it_builds() -> None:
    """003-16, 002-27: build-essential and cmake are installed before anything is built."""
    text = (DOCKER / "exporter.Dockerfile").read_text(encoding="utf-8")
    assert text.index("build-essential cmake") < text.index("llama_build")


def test_llama_cpp_is_built_by_cmake_without_cuda() -> None:
    """003-10: CMake and not make, -DGGML_CUDA=OFF, one target, jobs in parallel."""
    text = (tree.ROOT / "deploy" / "local" / "llama_build.py").read_text(encoding="utf-8")
    assert "-DGGML_CUDA=OFF" in llama_build.CMAKE_OPTIONS
    assert re.search(r'"cmake",\s+"--build"|cmake", "--build"', text)
    assert '"--target"' in text
    assert '"--parallel"' in text
    assert not re.search(r'"make"', text)


def test_llama_cpp_quantises_to_the_same_bytes_on_every_machine() -> None:
    """Bit identity holds only without -march=native and without contraction."""
    assert "-DGGML_NATIVE=OFF" in llama_build.CMAKE_OPTIONS
    assert "-DCMAKE_C_FLAGS=-ffp-contract=off" in llama_build.CMAKE_OPTIONS
    assert "-DCMAKE_CXX_FLAGS=-ffp-contract=off" in llama_build.CMAKE_OPTIONS
