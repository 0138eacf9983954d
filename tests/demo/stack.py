"""The stack that the demo runs on, through the commands that a user types."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

UP_SECONDS = 180
DOWN_SECONDS = 60


class StackFailed(Exception):
    """The stack did not come up; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack in a state folder of its own."""

    state: Path
    environ: Mapping[str, str] | None = None

    @property
    def credentials(self) -> Path:
        """File that the client reads."""
        return self.state / "credentials.json"

    def up(self) -> int:
        """Bring it up and return the number of its processes."""
        answer = self._tunesmith("up", "--detach", "--json", timeout_seconds=UP_SECONDS)
        processes = answer.get("processes")
        return len(processes) if isinstance(processes, list) else 0

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that serve."""
        answer = self._tunesmith("status", "--json", timeout_seconds=UP_SECONDS, refuse=False)
        processes = answer.get("processes")
        found = processes if isinstance(processes, list) else []
        return {entry["name"]: entry["pid"] for entry in found if entry["state"] == "ready"}

    def down(self) -> None:
        """Bring it down; its data stays."""
        self._tunesmith("down", "--json", timeout_seconds=DOWN_SECONDS)

    def _tunesmith(
        self, *words: str, timeout_seconds: float, refuse: bool = True
    ) -> dict[str, object]:
        command = [sys.executable, "-m", "tunesmith", words[0], "--state", str(self.state)]
        done = subprocess.run(
            [*command, *words[1:]],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, **(self.environ or {})},
        )
        try:
            answer: dict[str, object] = json.loads(done.stdout)
        except ValueError:
            answer = {}
        if refuse and done.returncode != 0:
            told = [str(answer[key]) for key in ("error", "next_step", "detail") if answer.get(key)]
            raise StackFailed(" ".join(told) or done.stderr.strip() or f"exit {done.returncode}")
        return answer
