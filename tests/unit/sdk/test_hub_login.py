"""The user's token for the model hub: where it is found, and when it leaves this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.platform_double import Script, a_platform
from tunesmith import credentials
from tunesmith.cli import session
from tunesmith.cli.hub_login import found_login
from tunesmith.cli.main import app

TOKEN = "hf_plantedPLANTEDplantedPLANTED012345"
SUBMIT = ("run", "submit", "-m", "org/gated", "-d", "habit", "-t", "cpu", "--attest", "--yes")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def shell(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    file = tmp_path / "credentials.json"

    def run(*words: str) -> Result:
        session._SETTINGS.as_json = False
        return CliRunner().invoke(app, ["--credentials", str(file), *words])

    with a_platform(script) as mine:
        credentials.save(mine, file)
        yield run


@pytest.mark.parametrize(
    ("environ", "file", "token"),
    [
        ({"HF_TOKEN": f" {TOKEN} "}, "", TOKEN),
        ({"HUGGING_FACE_HUB_TOKEN": TOKEN}, "", TOKEN),
        ({"HF_HOME": "{home}/hf"}, "hf/token", TOKEN),
        ({"HF_TOKEN_PATH": "{home}/mine"}, "mine", TOKEN),
        ({"HOME": "{home}"}, ".cache/huggingface/token", TOKEN),
        ({"HOME": "{home}"}, "", ""),
    ],
)
def test_it_is_where_the_hubs_own_tools_keep_it(
    environ: dict[str, str], file: str, token: str, tmp_path: Path
) -> None:
    """003-26"""
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"{TOKEN}\n")
    given = {name: value.format(home=tmp_path) for name, value in environ.items()}
    assert found_login(given)[0] == token


def test_it_stays_here_when_nobody_asks_for_it(
    shell: Callable[..., Result], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """003-26: an open model is asked for without a name."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert shell(*SUBMIT).exit_code == 0
    assert set(script.hub_tokens) == {""}


def test_it_is_sent_when_the_hub_refuses_without(
    shell: Callable[..., Result], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """003-26, 002-08"""
    script.gated_for = TOKEN
    refused = shell(*SUBMIT)
    assert refused.exit_code == 6
    assert "HF_TOKEN" in refused.stderr
    assert not script.submitted
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    accepted = shell(*SUBMIT)
    assert accepted.exit_code == 0
    assert "using the token of HF_TOKEN" in accepted.stderr
    (request,) = script.submitted.values()
    assert request.hub_token == TOKEN
    assert TOKEN not in accepted.stdout + accepted.stderr + refused.stderr
    assert shell("billing", "quote", "-m", "org/gated", "-d", "habit", "-t", "cpu").exit_code == 0


def test_what_is_typed_is_used_at_once(shell: Callable[..., Result], script: Script) -> None:
    """003-26"""
    script.gated_for = TOKEN
    assert shell(*SUBMIT, "--hf-token", TOKEN).exit_code == 0
    assert set(script.hub_tokens) == {TOKEN}
