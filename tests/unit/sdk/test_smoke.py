"""`tunesmith smoke` where something is wrong: which check says so, and how the command ends."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.models.anvil.grammar import HOME
from tests.support.platform_double import RUN, Script, a_platform
from tunesmith import credentials
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_pb2
from tunesmith.cli import session, smoke
from tunesmith.cli.main import app

Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def smoked(script: Script, tmp_path: Path) -> Iterator[Callable[..., Answer]]:
    file = tmp_path / "credentials.json"

    def run(*words: str) -> Answer:
        session._SETTINGS.as_json = False
        done = CliRunner().invoke(app, ["--credentials", str(file), "smoke", "--json", *words])
        return done.exit_code, json.loads(done.stdout)

    with a_platform(script) as mine:
        credentials.save(mine, file)
        yield run


def test_the_rows_are_those_of_the_shipped_habit() -> None:
    """003-21: a known-good set."""
    rows = smoke.KNOWN_GOOD.read_text("utf-8").splitlines()
    assert len(rows) == 48
    assert set(rows) <= set((HOME / "habit.jsonl").read_text("utf-8").splitlines())


def test_a_run_that_fails_on_known_good_inputs_is_the_platforms_fault(
    smoked: Callable[..., Answer], script: Script
) -> None:
    """003-22"""
    script.ends_as = run_pb2.RUN_STATE_FAILED
    code, answer = smoked()
    assert code == 9
    assert answer["works"] is False
    assert answer["verdict"] == smoke.BROKEN
    last = answer["checks"][-1]
    assert (last["name"], last["code"]) == ("run completes", "RUNTIME_GPU_OOM")
    assert last["next_step"] == "Lower the batch size."


def test_a_run_that_is_not_done_in_time_is_cancelled(
    smoked: Callable[..., Answer], script: Script
) -> None:
    """003-22: the timeout is short, and nothing goes on behind the user's back."""
    script.is_stuck = True
    code, answer = smoked("--timeout", "0.2")
    assert code == 8
    assert answer["checks"][-1]["code"] == "RUN_TIMEOUT"
    assert "'queued'" in answer["checks"][-1]["sentence"]
    assert script.cancelled == [RUN]


@pytest.mark.parametrize("words", [(), ("--tier", "h100")])
def test_without_a_trainer_nothing_is_sent(
    smoked: Callable[..., Answer], script: Script, words: tuple[str, ...]
) -> None:
    """003-22"""
    if not words:
        script.node_state = work_pb2.NODE_STATE_LOST
    code, answer = smoked(*words, "--timeout", "0.2")
    assert code == 8
    assert answer["checks"][-1]["name"] == "a trainer is up"
    assert not script.uploads
    assert not script.submitted


def test_what_a_user_names_is_attested_by_the_user_only(
    smoked: Callable[..., Answer], script: Script, tmp_path: Path
) -> None:
    """003-22, 001-22: an input of one's own in place of a known-good one."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "a", "completion": "b"}\n')
    for words in ((), ("--data", str(mine)), ("--data", str(mine), "--attest")):
        smoked(*words)
    rights = [request.spec.attestations for request in script.submitted.values()]
    assert [(each.dataset_rights, each.model_license) for each in rights] == [
        (True, True),
        (False, False),
        (True, True),
    ]
    assert not any(each.refund_waived for each in rights)


def test_a_missing_proof_is_found(smoked: Callable[..., Answer], script: Script) -> None:
    """003-21: a run that completes without what it promises does not pass."""
    code, answer = smoked()
    assert code == 9
    assert answer["checks"][-1]["name"] == "adapter learnt"
