"""The command line: what it prints, what it asks, and how it ends."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.support.platform_double import RUN, Script, a_platform
from tunesmith import credentials
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import output, session
from tunesmith.cli.main import app
from tunesmith.cli.run_page import show_list

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SUBMIT = ("run", "submit", "-m", "m", "-d", "habit", "-t", "cpu", "--attest")


class Shell:
    """Runs commands against a platform of its own."""

    def __init__(self, script: Script, file: Path) -> None:
        self.script, self.file = script, file

    def __call__(self, *words: str, answer: str | None = None) -> Result:
        session._SETTINGS.as_json = False
        return CliRunner().invoke(app, ["--credentials", str(self.file), *words], input=answer)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def shell(script: Script, tmp_path: Path) -> Iterator[Shell]:
    with a_platform(script) as mine:
        credentials.save(mine, tmp_path / "credentials.json")
        yield Shell(script, tmp_path / "credentials.json")


def test_submit_shows_the_quote_and_needs_a_yes(shell: Shell, script: Script) -> None:
    """003-27"""
    refused = shell(*SUBMIT)
    assert refused.exit_code == 3
    assert "0.02 credits for 2 minutes" in refused.stderr
    assert "--yes" in refused.stderr
    assert not script.submitted
    accepted = shell(*SUBMIT, "--yes")
    assert accepted.exit_code == 0
    assert len(script.submitted) == 1


def test_cancel_needs_a_yes_because_it_cannot_be_undone(shell: Shell, script: Script) -> None:
    """001-30"""
    refused = shell("run", "cancel", "r1")
    assert refused.exit_code == 3
    assert "cannot be undone" in " ".join(refused.stderr.split())
    assert not script.cancelled
    assert shell("run", "cancel", "r1", "--yes").exit_code == 0
    assert script.cancelled == [RUN]


def test_a_person_may_answer_no(
    shell: Shell, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """001-30"""
    monkeypatch.setattr(session, "is_interactive", lambda: True)
    done = shell("run", "cancel", "r1", answer="n\n")
    assert done.exit_code == 0
    assert "Nothing was done" in done.stderr
    assert not script.cancelled


def test_an_error_is_code_message_and_next_step_without_a_traceback(shell: Shell) -> None:
    """000-35"""
    refused = shell("run", "show", "r2")
    assert refused.exit_code == 4
    assert "RUN_NOT_FOUND" in refused.stderr
    assert "→" in refused.stderr
    assert "Traceback" not in refused.output
    as_json = shell("run", "show", "r2", "--json")
    error = json.loads(as_json.stderr)["error"]
    assert error["code"] == "RUN_NOT_FOUND"
    assert error["remedy"]
    assert as_json.stdout == ""


def test_missing_credentials_say_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--credentials", str(tmp_path / "none"), "run", "list"])
    assert done.exit_code == 5
    assert "tunesmith up" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "words",
    [
        ("run", "list"),
        ("run", "show", "r1"),
        ("run", "report", "r1"),
        ("run", "cancel", "r1", "--yes"),
        ("run", "duplicate", "r1", "--set", "training.epochs=3"),
        (*SUBMIT, "--yes"),
        ("dataset", "list"),
        ("billing", "balance"),
        ("billing", "quote", "-m", "m", "-d", "habit", "-t", "cpu"),
        ("node", "list"),
        ("fault", "explain", "RUNTIME_GPU_OOM"),
        ("fault", "list"),
    ],
)
def test_every_command_speaks_json(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell(*words, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    assert shell(*words).exit_code == 0


def test_watch_prints_the_story_and_ends_by_the_state(shell: Shell, script: Script) -> None:
    """001-11, 001-12, 001-13"""
    done = shell("run", "watch", "r1")
    assert done.exit_code == 0
    assert "epoch 1/1 · step 1/3 · loss 3.0000" in done.stdout
    assert "2 rows were cut" in done.stdout
    assert "✔ Completed" in done.stdout
    lines = shell("run", "watch", "r1", "--json").stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [str(n) for n in range(1, 9)]
    script.ends_as = run_pb2.RUN_STATE_CANCELLED
    assert shell("run", "watch", "r1").exit_code == 10


def test_a_failed_run_shows_its_pill_and_its_message(shell: Shell, script: Script) -> None:
    """000-07, 000-36, 001-21"""
    script.ends_as = run_pb2.RUN_STATE_FAILED
    done = shell("run", "watch", "r1")
    assert done.exit_code == 9
    shown = shell("run", "show", "r1").stdout
    assert "✘ Failed" in shown
    assert "CUDA out of memory." in shown
    assert "Lower the batch size." in shown


def test_report_prints_what_a_help_request_needs_and_nothing_else(shell: Shell) -> None:
    """000-37"""
    lines = [" ".join(line.split()) for line in shell("run", "report", "r1").stdout.splitlines()]
    assert lines == [
        "category OUT_OF_MEMORY",
        "error CUDA out of memory.",
        "run r1",
        "base model tunesmith/anvil-3m (catalog)",
        "datasets projects/p/datasets/habit/versions/1",
    ]


def test_each_of_the_seven_states_has_icon_and_colour() -> None:
    """001-01"""
    states = {value for value in run_pb2.RunState.values() if value}
    assert set(output.PILLS) == states
    assert len(states) == 7
    assert len({words for _, _, words in output.PILLS.values()}) == 7


def test_options_build_the_spec(shell: Shell, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"base_model": "old", "training": {"max_steps": 5}, "lora": {}}))
    words = ("run", "submit", "--spec", str(file), "-m", "new", "-d", "a", "-d", "b@3", "--rank")
    more = ("4", "--set", "training.packing=false", "--no-gguf", "--attest", "--yes")
    done = shell(*words, *more, "--request-id", "mine")
    assert done.exit_code == 0, done.output
    spec = script.submitted["mine"].spec
    assert (spec.base_model, spec.training.max_steps, spec.lora.rank) == ("new", 5, 4)
    assert spec.training.HasField("packing")
    assert not spec.training.packing
    assert not spec.export.gguf
    assert spec.attestations.dataset_rights
    assert spec.attestations.model_license
    assert not spec.attestations.refund_waived


# Number of METHOD_ORPO in the contract.
ORPO = 3


@pytest.mark.parametrize(
    ("backend", "number"),
    [("auto", 1), ("cuda", 2), ("cpu", 3), ("mlx", 4)],
)
def test_the_backend_and_the_method_are_named_in_small_letters(
    shell: Shell, script: Script, backend: str, number: int
) -> None:
    """002-39"""
    words = ("--backend", backend, "--method", "orpo", "--yes", "--request-id", "mine")
    done = shell(*SUBMIT, *words)
    assert done.exit_code == 0, done.output
    training = script.submitted["mine"].spec.training
    assert training.backend == number
    assert training.method == ORPO


@pytest.mark.parametrize("words", [("--backend", "tpu"), ("--method", "rlhf")])
def test_a_backend_or_method_that_does_not_exist_is_refused(
    shell: Shell, words: tuple[str, str]
) -> None:
    done = shell(*SUBMIT, *words, "--yes")
    assert done.exit_code == 3
    assert "INPUT_FIELD_INVALID" in done.stderr


@pytest.mark.parametrize("text", ["training.nonsense=1", "lora.rank=many", "lora=1"])
def test_a_field_that_does_not_exist_is_refused(shell: Shell, text: str) -> None:
    done = shell(*SUBMIT, "--set", text, "--yes")
    assert done.exit_code == 3
    assert "INPUT_FIELD_INVALID" in done.stderr


def test_login_checks_the_token_before_it_keeps_it(shell: Shell, tmp_path: Path) -> None:
    mine = credentials.load(shell.file)
    kept = tmp_path / "kept.json"
    words = ("login", "--address", mine.address, "--project", "p", "--token")
    for token, code in (("wrong", 5), (mine.token, 0)):
        session._SETTINGS.as_json = False
        done = CliRunner().invoke(app, ["--credentials", str(kept), *words, token])
        assert done.exit_code == code
        assert kept.exists() == (code == 0)
    assert credentials.load(kept).token == mine.token


def test_an_unknown_code_is_refused(shell: Shell) -> None:
    done = shell("fault", "explain", "NOPE")
    assert done.exit_code == 3
    assert "INPUT_FAULT_UNKNOWN" in done.stderr


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (140, 1)])
def test_a_list_of_runs_never_cuts_an_id_or_a_model(width: int, lines: int) -> None:
    run = run_pb2.Run(
        name="projects/p/runs/run-01m7ytcvq486zfd161hpaht46f",
        state=run_pb2.RUN_STATE_WAITING_FOR_GPU,
        metrics=run_pb2.RunMetrics(step=1200, total_steps=12000, loss=0.1234),
    )
    run.spec.base_model = "Qwen/Qwen2.5-0.5B-Instruct"
    run.cost.amount_micros = 1_234_560_000
    run.submit_time.FromDatetime(NOW - timedelta(minutes=23))
    screen = Console(width=width, file=StringIO())
    show_list([run] * 3, screen, now=NOW)
    file = screen.file
    assert isinstance(file, StringIO)
    shown = file.getvalue()
    for text in ("run-01m7ytcvq486zfd161hpaht46f", "Qwen/Qwen2.5-0.5B-Instruct", "1200/12000",
                 "Waiting for GPU", "0.1234", "1234.56", "23 min ago"):  # fmt: skip
        assert shown.count(text) == 3, shown
    header = 1 if lines == 1 else 0
    assert len(shown.splitlines()) == 3 * lines + header
    assert max(map(len, shown.splitlines())) <= width
