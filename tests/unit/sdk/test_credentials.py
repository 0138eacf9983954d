"""Where a client finds its platform."""

import json
import stat
from pathlib import Path

import pytest

from tunesmith import credentials
from tunesmith.credentials import Credentials
from tunesmith.errors import AccessError

MINE = Credentials(address="127.0.0.1:7100", project="local", token="t0ken")


def test_what_was_saved_is_loaded_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "credentials.json"
    credentials.save(MINE, path)
    assert credentials.load(path) == MINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_environment_names_the_file_before_the_default_folder(tmp_path: Path) -> None:
    named = tmp_path / "mine.json"
    credentials.save(MINE, named)
    environ = {"TUNESMITH_CREDENTIALS": str(named), "TUNESMITH_STATE": str(tmp_path / "none")}
    assert credentials.load(environ=environ) == MINE
    home = {"XDG_STATE_HOME": "/somewhere"}
    assert credentials.default_state_folder(home) == Path("/somewhere/tunesmith")


@pytest.mark.parametrize("text", [None, "not json", "[]", '{"address": "a:1"}'])
def test_bad_files_are_refused_with_the_next_step(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "credentials.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AccessError) as refused:
        credentials.load(path)
    assert refused.value.code == "ACCESS_TOKEN_MISSING"
    assert "tunesmith login" in refused.value.remedy


def test_unknown_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps({"address": "h:1", "project": "p", "token": "t", "new": 1}))
    assert credentials.load(path).project == "p"


def test_a_token_never_leaves_the_machine_in_plain_text() -> None:
    for address in ("10.0.0.5:7100", "tunes.example:443"):
        away = Credentials(address=address, project="p", token="t")
        with pytest.raises(AccessError, match="no TLS"):
            _ = away.is_tls
    assert Credentials(address="https://tunes.example:443", project="p", token="t").is_tls
    assert not MINE.is_tls


def test_secrets_are_not_in_the_representation() -> None:
    assert "t0ken" not in repr(MINE)
