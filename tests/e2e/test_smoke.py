"""`tunesmith smoke` on the whole stack."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.demo.stack import Stack
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import session, smoke
from tunesmith.cli.main import app
from tunesmith.client import Client

pytestmark = pytest.mark.e2e


def test_a_short_run_proves_the_platform_and_leaves_nothing(stack: Stack, client: Client) -> None:
    """003-21, 003-22: steps, export proof and files of a known-good set, in one command."""
    before = {each.name for each in client.artifacts.list()}, len(client.datasets.list())
    session._SETTINGS.as_json = False
    done = CliRunner().invoke(app, ["--credentials", str(stack.credentials), "smoke", "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 0, answer
    assert answer["works"] is True
    assert answer["verdict"] == smoke.WORKS
    assert [check["name"] for check in answer["checks"] if check["ok"]] == [
        "platform answers",
        "a trainer is up",
        "dataset is taken",
        "run is accepted",
        "run completes",
        "adapter learnt",
        "export is proven",
        "files come down",
    ]
    assert answer["public_known_good"]["dataset"] == "trl-lib/Capybara"
    assert answer["public_known_good"]["model"] == "Qwen/Qwen2.5-0.5B"
    run = client.runs.get(answer["run"])
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    assert list(run.tags) == ["smoke"]
    after = {each.name for each in client.artifacts.list()}, len(client.datasets.list())
    assert after == before


def test_one_bad_input_among_good_ones_is_named(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    """003-22: known-good works, this does not: the input is at fault."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a"}\n')
    session._SETTINGS.as_json = False
    words = ["smoke", "--data", str(bad), "--attest", "--json"]
    done = CliRunner().invoke(app, ["--credentials", str(stack.credentials), *words])
    answer = json.loads(done.stdout)
    assert done.exit_code == 3
    assert answer["verdict"] == smoke.BROKEN_WITH_YOURS
    assert answer["checks"][-1]["name"] == "dataset is taken"
    assert "missing required field" in answer["checks"][-1]["sentence"]
