"""A program that fails says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress, run_tool


def run(code: str, folder: Path, *, timeout_seconds: float = 20) -> str:
    """Run a line of Python as the tool."""
    return run_tool(
        [sys.executable, "-c", code],
        label="tool",
        log=folder / "logs" / "tool.log",
        progress=Progress(quiet=True),
        timeout_seconds=timeout_seconds,
    )


def test_the_output_of_a_good_run_is_returned_and_kept(tmp_path: Path) -> None:
    """Both streams, in the order of writing."""
    said = run("import sys; print('one', flush=True); print('two', file=sys.stderr)", tmp_path)
    assert said == "one\ntwo\n"
    assert (tmp_path / "logs" / "tool.log").read_text(encoding="utf-8") == said


def test_a_failing_tool_shows_both_streams(tmp_path: Path) -> None:
    """003-18: stdout and stderr are printed on failure, and the failure goes on."""
    code = "import sys; print('to stdout', flush=True); sys.exit('to stderr')"
    with pytest.raises(SetupRefused, match="exit code 1") as refused:
        run(code, tmp_path)
    assert "to stdout" in str(refused.value)
    assert "to stderr" in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        "Temporary failure in name resolution",
        "no version that satisfies x==1 (from versions: none)",
    ],
)
def test_a_missing_network_is_named(tmp_path: Path, said: str) -> None:
    """The usual reason of a failing download gets its own next step."""
    with pytest.raises(SetupRefused) as refused:
        run(f"import sys; sys.exit({said!r})", tmp_path)
    assert "No network" in refused.value.next_step
    assert "PIP_INDEX_URL" in refused.value.next_step


def test_a_hanging_tool_is_ended(tmp_path: Path) -> None:
    """Every wait has its bound."""
    with pytest.raises(SetupRefused, match="did not end within"):
        run("import time; time.sleep(60)", tmp_path, timeout_seconds=0.3)


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    """One sentence, no traceback."""
    with pytest.raises(SetupRefused, match="no-such-tool could not be started"):
        run_tool(
            ["no-such-tool"],
            label="tool",
            log=tmp_path / "log",
            progress=Progress(quiet=True),
            timeout_seconds=5,
        )
