"""Exports in the SDK and on the command line: what is asked, how it ends."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.exports_double import ARTIFACT
from tests.support.platform_double import Script, a_platform
from tunesmith import AsyncClient, Client, credentials
from tunesmith.api.export.v1 import export_pb2
from tunesmith.cli import session
from tunesmith.cli.main import app
from tunesmith.credentials import Credentials
from tunesmith.errors import NotFoundError, RunFailedError
from tunesmith.names import artifact_name


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def platform(script: Script) -> Iterator[Credentials]:
    with a_platform(script) as mine:
        yield mine


class Shell:
    """The command line before a platform."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, *words: str) -> Result:
        session._SETTINGS.as_json = False
        return CliRunner().invoke(app, ["--credentials", str(self.file), "artifact", *words])


@pytest.fixture
def shell(platform: Credentials, tmp_path: Path) -> Shell:
    credentials.save(platform, tmp_path / "credentials.json")
    return Shell(tmp_path / "credentials.json")


def test_an_export_is_asked_for_and_waited_for(platform: Credentials, script: Script) -> None:
    seen: list[int] = []
    with Client(platform) as client:
        export = client.exports.create("a1", "Q8_0", request_id="mine")
        done = client.exports.wait(export.name, on_change=lambda each: seen.append(each.state))
    asked = script.exports.asked[0]
    assert (asked.artifact, asked.quantization, asked.request_id) == (ARTIFACT, "Q8_0", "mine")
    assert done.state == export_pb2.EXPORT_STATE_COMPLETED
    assert seen == [export_pb2.EXPORT_STATE_EXPORTING, export_pb2.EXPORT_STATE_COMPLETED]


def test_the_async_client_does_the_same(platform: Credentials, script: Script) -> None:
    async def story() -> export_pb2.Export:
        async with AsyncClient(platform) as client:
            export = await client.exports.create("a1", "Q8_0")
            assert [each.name for each in await client.exports.list()] == [export.name]
            return await client.exports.wait("e1")

    assert asyncio.run(story()).state == export_pb2.EXPORT_STATE_COMPLETED


def test_a_failed_export_is_raised_with_its_code(platform: Credentials, script: Script) -> None:
    script.exports.ends_as = export_pb2.EXPORT_STATE_FAILED
    with Client(platform) as client, pytest.raises(RunFailedError) as caught:
        client.exports.wait("e1")
    assert caught.value.code == "EXPORT_NOOP_MERGE"


def test_a_hub_entry_may_be_named_by_its_run() -> None:
    assert artifact_name("p", "projects/p/runs/r1") == "projects/p/artifacts/r1"
    assert artifact_name("p", "r1") == "projects/p/artifacts/r1"
    assert artifact_name("p", "projects/p/artifacts/r1") == "projects/p/artifacts/r1"


def test_the_command_asks_and_says_how_to_go_on(shell: Shell, script: Script) -> None:
    done = shell("export", "a1", "-q", "q8_0")
    assert done.exit_code == 0, done.output
    assert script.exports.asked[0].quantization == "Q8_0"
    assert not script.exports.asked[0].hub_token
    assert "Queued" in done.stdout
    assert "tunesmith artifact watch e1" in " ".join(done.stderr.split())
    watched = shell("export", "a1", "--quantization", "Q8_0", "--watch", "--json")
    assert json.loads(watched.stdout)["state"] == "EXPORT_STATE_COMPLETED"


@pytest.mark.parametrize(
    ("ends_as", "code"),
    [
        (export_pb2.EXPORT_STATE_COMPLETED, 0),
        (export_pb2.EXPORT_STATE_FAILED, RunFailedError.exit_code),
        (export_pb2.EXPORT_STATE_CANCELLED, 10),
    ],
)
def test_the_exit_code_says_how_it_ended(
    shell: Shell, script: Script, ends_as: export_pb2.ExportState, code: int
) -> None:
    script.exports.ends_as = ends_as
    done = shell("watch", "e1")
    assert done.exit_code == code
    if ends_as == export_pb2.EXPORT_STATE_FAILED:
        assert "EXPORT_NOOP_MERGE" in done.stderr
        assert "EXPORT_NOOP_MERGE" in shell("exports").stdout


def test_an_unknown_entry_is_refused(shell: Shell) -> None:
    done = shell("export", "nothing")
    assert done.exit_code == NotFoundError.exit_code
    assert "ARTIFACT_NOT_FOUND" in done.stderr


@pytest.mark.parametrize(
    "words", [("list",), ("export", "a1"), ("exports",), ("watch", "e1"), ("cancel", "e1")]
)
def test_every_command_speaks_json(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell(*words, "--json")
    assert json.loads(done.stdout)
    assert shell(*words).exit_code in (0, 10)
