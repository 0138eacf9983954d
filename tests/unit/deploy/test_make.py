"""`make test` with a Python that runs no tests."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Says which part it is asked for, with the setting that must not reach it, and fails where its
# environment says so.
STUB = """#!/bin/sh
case "$*" in
  *integration*) echo "ran servers$PYTHONDONTWRITEBYTECODE"; exit "$SERVERS" ;;
  *) echo "ran units$PYTHONDONTWRITEBYTECODE"; exit "$UNITS" ;;
esac
"""


@pytest.mark.parametrize("units", [0, 1])
@pytest.mark.parametrize("servers", [0, 5])
def test_both_parts_run_and_both_results_are_told_last(
    tmp_path: Path, units: int, servers: int
) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    made = subprocess.run(
        ["make", "test", "PYTHON=true", f"VENV={tmp_path}"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "UNITS": str(units),
            "SERVERS": str(servers),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert made.stdout.splitlines() == [
        "ran units",
        "ran servers",
        f"Unit tests:   {'FAILED' if units else 'passed'}",
        f"Server tests: {'FAILED' if servers else 'passed'}",
    ]
    assert (made.returncode != 0) == bool(units or servers)
