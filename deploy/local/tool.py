"""Run a program and show its output only when it fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.refusal import SetupRefused

# A terminal line is redrawn this often; a log file gets a line this often.
REDRAW_SECONDS = 0.2
LOG_LINE_SECONDS = 15.0
# Enough to hold a whole compiler error without filling the screen.
SHOWN_LINES = 120
NETWORK_SIGNS = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable"
    r"|NewConnectionError|Failed to establish a new connection|dns error|Connection refused"
    r"|Could not resolve|error sending request|No route to host|from versions: none",
    re.IGNORECASE,
)
# "[12/74]" of ninja, " 43%" of make and of downloads.
STEP_SIGN = re.compile(r"\[\s*(\d+)/(\d+)\]|\b(\d{1,3})%")


class Progress:
    """One line per step: redrawn on a terminal, appended now and then to a file."""

    def __init__(self, *, quiet: bool = False) -> None:
        """A quiet progress says nothing, for tests and for `--json`."""
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._guard = threading.Lock()
        self._last = 0.0

    def working(self, label: str, state: str, seconds: float) -> None:
        """Show that a step runs."""
        gap = REDRAW_SECONDS if self._terminal else LOG_LINE_SECONDS
        with self._guard:
            now = time.monotonic()
            if self._quiet or now - self._last < gap:
                return
            self._last = now
            self._write(f"  … {label:<18} {seconds:6.1f} s  {state}"[:110], end=not self._terminal)

    def done(self, label: str, note: str, seconds: float) -> None:
        """Show that a step has ended."""
        with self._guard:
            if not self._quiet:
                self._write(f"  ✓ {label:<18} {seconds:6.1f} s  {note}"[:110], end=True)

    def say(self, text: str) -> None:
        """One line of plain text."""
        with self._guard:
            if not self._quiet:
                self._write(text, end=True)

    def _write(self, line: str, *, end: bool) -> None:
        clear = "\r\033[K" if self._terminal else ""
        sys.stderr.write(f"{clear}{line}" + ("\n" if end else ""))
        sys.stderr.flush()


def run_tool(
    argv: Sequence[str | Path],
    *,
    label: str,
    log: Path,
    progress: Progress,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program to its end and return what it printed on both streams.

    Raises:
        SetupRefused: it failed or took too long; the message ends with its output.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        raise SetupRefused(
            f"{argv[0]} could not be started: {error.strerror}.",
            next_step="Install it or put it on PATH.",
        ) from error
    reader = threading.Thread(target=_collect, args=(process, log, lines.append), daemon=True)
    reader.start()
    while process.poll() is None:
        seconds = time.monotonic() - started
        if seconds > timeout_seconds:
            process.kill()
            process.wait()
            reader.join()
            raise _failure(label, log, lines, reason=f"did not end within {timeout_seconds:.0f} s")
        progress.working(label, _step_of(lines), seconds)
        reader.join(timeout=0.05)
    reader.join()
    if process.returncode != 0:
        raise _failure(label, log, lines, reason=f"failed with exit code {process.returncode}")
    return "".join(lines)


def _collect(process: subprocess.Popen[str], log: Path, keep: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            keep(line)


def _step_of(lines: list[str]) -> str:
    for line in reversed(lines[-5:]):
        match = STEP_SIGN.search(line)
        if match:
            return match[0]
    return lines[-1].strip()[:70] if lines else "starting"


def _failure(label: str, log: Path, lines: list[str], *, reason: str) -> SetupRefused:
    text = "".join(lines[-SHOWN_LINES:])
    if NETWORK_SIGNS.search(text):
        next_step = (
            "No network, or the package index is not reachable: connect, or point pip at a mirror "
            "with PIP_INDEX_URL."
        )
    else:
        next_step = f"Its whole output is in {log}."
    return SetupRefused(f"The step '{label}' {reason}.", next_step=next_step, detail=text)
