"""The doctor: a sentence and a next step for each thing that is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.local import commands, doctor, places
from deploy.local.doctor import Finding


def found(state: Path, name: str) -> Finding:
    """One finding by its name, from the cheap checks alone."""
    checks = {
        "setup": doctor._setup,
        "postgres": doctor._postgres,
        "nats-server": doctor._nats,
        "make": doctor._make,
        "disk": lambda: doctor._disk(state),
        "memory": doctor._memory,
        "state folder": lambda: doctor._state_folder(state),
    }
    return doctor._finding(name, checks[name])


@pytest.mark.parametrize("name", ["setup", "postgres", "nats-server"])
def test_a_checkout_that_is_not_set_up_is_told_the_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part is looked at first."""
    monkeypatch.setattr(places, "read_parts", lambda: None)
    finding = found(tmp_path, name)
    assert not finding.ok
    assert finding.next_step == "Run 'make setup'."
    assert finding.sentence.endswith(".")


def test_a_missing_make_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's two commands are make's."""
    monkeypatch.setenv("PATH", "")
    finding = found(tmp_path, "make")
    assert not finding.ok
    assert "make" in finding.next_step


@pytest.mark.parametrize(("name", "limit"), [("disk", "NEEDED_DISK_BYTES"),
                                             ("memory", "NEEDED_MEMORY_BYTES")])  # fmt: skip
def test_too_little_room_is_told_in_numbers(
    name: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much there is and how much it takes."""
    monkeypatch.setattr(doctor, limit, 1 << 60)
    finding = found(tmp_path / "not" / "yet" / "there", name)
    assert not finding.ok
    assert "GiB" in finding.sentence
    assert "GiB" in finding.next_step


def test_an_open_state_folder_is_found(tmp_path: Path) -> None:
    """It holds tokens."""
    tmp_path.chmod(0o755)
    finding = found(tmp_path, "state folder")
    assert not finding.ok
    assert f"chmod 700 '{tmp_path}'" in finding.next_step
    tmp_path.chmod(0o700)
    assert found(tmp_path, "state folder").ok


def test_a_module_that_does_not_load_is_reported_with_its_last_line() -> None:
    """Not with its traceback, and without taking the doctor along."""
    finding = doctor._finding("x", lambda: doctor._imports("json", "json.no_such_thing"))
    assert not finding.ok
    assert "AttributeError" in finding.sentence
    assert "\n" not in finding.sentence
    assert not doctor._finding("x", lambda: doctor._imports("no_such_module", "None")).ok


def test_status_of_a_stack_that_is_down_is_an_answer(tmp_path: Path) -> None:
    """Exit code 3 for scripts, a sentence for people, JSON for programs."""
    runner = CliRunner()
    plain = runner.invoke(commands.app, ["status", "--state", str(tmp_path / "none")])
    assert plain.exit_code == 3
    machine = runner.invoke(commands.app, ["status", "--state", str(tmp_path / "none"), "--json"])
    record = json.loads(machine.stdout)
    assert (record["running"], record["ready"], record["processes"]) == (False, False, [])


def test_down_of_nothing_changes_nothing(tmp_path: Path) -> None:
    """Ending what does not run is no mistake."""
    state = tmp_path / "none"
    done = CliRunner().invoke(commands.app, ["down", "--state", str(state), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["killed"] == []
    assert not state.exists()


def test_up_without_setup_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback reaches a person."""
    monkeypatch.setattr(places, "read_parts", lambda: None)
    done = CliRunner().invoke(commands.app, ["up", "--state", str(tmp_path / "s"), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["next_step"] == "Run 'make setup' first."
