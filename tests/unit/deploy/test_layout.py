"""The state folder: private, stable, and two of them never in each other's way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deploy.local import layout as layouts
from deploy.local.refusal import SetupRefused


def mode(path: Path) -> int:
    """Permission bits."""
    return path.stat().st_mode & 0o777


def test_a_second_opening_finds_the_same_ports_and_secrets(tmp_path: Path) -> None:
    """A restart must not lock the services out of their own database."""
    first = layouts.open_layout(tmp_path / "state")
    assert layouts.open_layout(tmp_path / "state") == first


def test_two_folders_share_nothing(tmp_path: Path) -> None:
    """Twice on one machine: own ports, own secrets, own mark."""
    one = layouts.open_layout(tmp_path / "one")
    two = layouts.open_layout(tmp_path / "two")
    assert one.stack_id != two.stack_id
    assert not set(one.secrets.values()) & set(two.secrets.values())


def test_secrets_and_ports_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Files 0600 in a folder 0700, also when the folder was opened wider before."""
    state = tmp_path / "state with a space"
    state.mkdir(mode=0o755)
    layouts.open_layout(state)
    assert mode(state) == 0o700
    assert mode(state / "secrets.json") == 0o600
    assert mode(state / "ports.json") == 0o600


def test_a_port_that_is_taken_since_is_chosen_anew_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have taken one between two starts."""
    first = layouts.open_layout(tmp_path / "state").ports
    taken = first["hub"]
    monkeypatch.setattr(layouts, "port_is_free", lambda port: port != taken)
    second = layouts.open_layout(tmp_path / "state").ports
    assert second["hub"] != taken
    assert {n: p for n, p in second.items() if n != "hub"} == {
        n: p for n, p in first.items() if n != "hub"
    }


def test_ports_are_distinct_and_below_the_range_of_outgoing_connections() -> None:
    """An outgoing connection of another program could otherwise sit on our port."""
    found = layouts.choose_ports(
        layouts.PORT_NAMES, start=9_999, is_free=lambda port: port % 2 == 0
    )
    assert len(set(found.values())) == len(layouts.PORT_NAMES)
    assert all(layouts.FIRST_PORT <= port <= layouts.LAST_PORT for port in found.values())


def test_too_few_free_ports_are_said() -> None:
    """One clear sentence instead of a failing start."""
    with pytest.raises(SetupRefused, match="are free"):
        layouts.choose_ports(("a", "b"), start=0, is_free=lambda port: port == layouts.FIRST_PORT)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"signing_key": 3}', '"x"'])
def test_a_damaged_secrets_file_is_said_and_not_replaced(tmp_path: Path, text: str) -> None:
    """New secrets would make the old database unreachable for good."""
    state = tmp_path / "state"
    layouts.open_layout(state)
    (state / "secrets.json").write_text(text, encoding="utf-8")
    with pytest.raises(SetupRefused, match="damaged"):
        layouts.open_layout(state)
    assert (state / "secrets.json").read_text(encoding="utf-8") == text


def test_a_damaged_ports_file_is_made_anew(tmp_path: Path) -> None:
    """Ports carry no meaning beyond the running stack."""
    state = tmp_path / "state"
    layouts.open_layout(state)
    (state / "ports.json").write_text("{", encoding="utf-8")
    ports = layouts.open_layout(state).ports
    assert json.loads((state / "ports.json").read_text(encoding="utf-8")) == ports


def test_a_long_path_gets_a_short_socket_folder(tmp_path: Path) -> None:
    """A Unix socket's path must stay under 104 bytes."""
    home = tmp_path / ("long" * 30)
    folder = layouts._socket_folder(home, "feedfacefeedface")
    try:
        assert len(os.fsencode(folder)) + layouts.SOCKET_NAME_BYTES <= layouts.SOCKET_PATH_BYTES
        assert mode(folder) == 0o700
    finally:
        folder.rmdir()


def test_no_supervisor_means_not_running(tmp_path: Path) -> None:
    """A lock file without a holder is no running stack."""
    layouts.open_layout(tmp_path / "state")
    assert not layouts.stack_is_running(tmp_path / "state")
    assert not layouts.stack_is_running(tmp_path / "nowhere")
