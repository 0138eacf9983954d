"""Which nats-server is taken, and which is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import nats_binary
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress


def a_server(folder: Path, version: str) -> Path:
    """A program that says it is a nats-server of this version."""
    path = folder / "nats-server"
    path.write_text(f"#!/bin/sh\necho 'nats-server: v{version}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["2.11.16", "2.11.20", "2.12.7", "2.14.0", "2.15.1", "3.0.0"])
def test_versions_without_known_holes_are_taken(version: str) -> None:
    """attacks.md 9: fixed from 2.11.16, 2.12.7 and 2.14.0 on."""
    assert nats_binary.is_new_enough(version)


@pytest.mark.parametrize("version", ["2.9.10", "2.10.29", "2.11.15", "2.12.6", "2.13.0"])
def test_versions_with_known_holes_are_refused(version: str) -> None:
    """attacks.md 9: route authentication bypass below the floor of each line."""
    assert not nats_binary.is_new_enough(version)


def test_a_named_server_that_is_too_old_is_an_error_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silently taking another one than the person named would hide the mistake."""
    monkeypatch.setenv("NATS_SERVER_BIN", str(a_server(tmp_path, "2.9.10")))
    with pytest.raises(SetupRefused) as refused:
        nats_binary.find(Progress(quiet=True), tmp_path)
    assert "2.9.10" in refused.value.sentence
    assert "2.12.7" in refused.value.next_step


def test_a_named_server_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS_SERVER_BIN wins over PATH and cache."""
    monkeypatch.setenv("NATS_SERVER_BIN", str(a_server(tmp_path, "2.14.3")))
    found = nats_binary.find(Progress(quiet=True), tmp_path)
    assert (found.version, found.source) == ("2.14.3", "NATS_SERVER_BIN")


def test_a_server_on_the_path_is_taken_only_when_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distributions still ship versions with holes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    a_server(tmp_path, "2.10.1")
    assert nats_binary.on_path() is None
    a_server(tmp_path, "2.15.1")
    found = nats_binary.on_path()
    assert found is not None
    assert found.version == "2.15.1"


def test_a_program_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    """A binary of another processor, say."""
    broken = tmp_path / "nats-server"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    assert nats_binary.version_of(broken) is None
