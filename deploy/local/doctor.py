"""Check the requirements of this machine; one sentence and one next step for each."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local import layout as layouts
from deploy.local import llama_build, nats_binary, places
from deploy.local.refusal import SetupRefused
from deploy.local.setup import NEEDED_DISK_BYTES

GIB = 1024**3
# A trainer, an exporter and five small services, measured with the demo model.
NEEDED_MEMORY_BYTES = 4 * GIB
IMPORT_SECONDS = 120.0
SETUP = "Run 'make setup'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked requirement."""

    name: str
    ok: bool
    sentence: str
    next_step: str = ""


def examine(state: Path) -> list[Finding]:
    """Every check, also after one has failed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("platform", _platform),
        ("python", _python),
        ("compiler", _compiler),
        ("make", _make),
        ("disk", lambda: _disk(state)),
        ("memory", _memory),
        ("setup", _setup),
        ("postgres", _postgres),
        ("nats-server", _nats),
        ("llama.cpp", lambda: _imports("llama_cpp", "llama_cpp.llama_supports_mmap()")),
        ("torch", lambda: _imports("torch", "torch.ones(1).sum()")),
        ("accelerator", _accelerator),
        ("state folder", lambda: _state_folder(state)),
        ("ports", lambda: _ports(state)),
    ]
    return [_finding(name, check) for name, check in checks]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, sentence=check())
    except SetupRefused as refused:
        return Finding(name=name, ok=False, sentence=refused.sentence, next_step=refused.next_step)


def _platform() -> str:
    layouts.require_supported()
    return f"{platform.system()} on {platform.machine()}."


def _python() -> str:
    return f"Python {platform.python_version()}."


def _compiler() -> str:
    if llama_build.cached_wheel() is not None and not _compilers_work():
        return "None works here, but llama.cpp is built already."
    llama_build.require_compilers()
    return "A C and a C++ compiler work."


def _compilers_work() -> bool:
    try:
        llama_build.require_compilers()
    except SetupRefused:
        return False
    return True


def _make() -> str:
    found = shutil.which("make")
    if found is None:
        raise SetupRefused(
            "make was not found, and the README's commands need it.",
            next_step="Debian, Ubuntu: apt install make; macOS: xcode-select --install.",
        )
    return "make was found."


def _disk(state: Path) -> str:
    folder = next(parent for parent in [state, *state.parents] if parent.exists())
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_DISK_BYTES:
        raise SetupRefused(
            f"Only {free_bytes / GIB:.1f} GiB are free below {folder}.",
            next_step=f"Free {NEEDED_DISK_BYTES / GIB:.0f} GiB, or choose another --state.",
        )
    return f"{free_bytes / GIB:.0f} GiB are free."


def _memory() -> str:
    free_bytes = psutil.virtual_memory().available
    if free_bytes < NEEDED_MEMORY_BYTES:
        raise SetupRefused(
            f"Only {free_bytes / GIB:.1f} GiB of memory are free.",
            next_step=f"The stack wants {NEEDED_MEMORY_BYTES / GIB:.0f} GiB: end other programs.",
        )
    return f"{free_bytes / GIB:.0f} GiB are free."


def _setup() -> str:
    if places.read_parts() is None:
        raise SetupRefused("This checkout is not set up.", next_step=SETUP)
    return "The checkout is set up."


def _postgres() -> str:
    parts = places.read_parts()
    binary = Path(parts.postgres) / "bin" / "postgres" if parts else None
    if binary is None or not binary.is_file():
        raise SetupRefused("Postgres is not in place.", next_step=SETUP)
    try:
        said = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=nats_binary.PROBE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupRefused(f"Postgres does not run here: {error}.", next_step=SETUP) from error
    return f"{said.stdout.strip()}."


def _nats() -> str:
    parts = places.read_parts()
    if parts is None:
        raise SetupRefused("nats-server is not in place.", next_step=SETUP)
    version = nats_binary.version_of(Path(parts.nats_server))
    if version is None:
        raise SetupRefused(f"{parts.nats_server} does not run here.", next_step=SETUP)
    if not nats_binary.is_new_enough(version):
        raise SetupRefused(
            f"nats-server {version} has known security holes.",
            next_step=f"Install at least {nats_binary.FLOOR_TEXT} and run 'make setup'.",
        )
    return f"nats-server {version} ({parts.nats_source})."


def _imports(module: str, proof: str) -> str:
    """Import a compiled module in a process of its own, since a broken one may crash it."""
    if importlib.util.find_spec(module) is None:
        raise SetupRefused(f"{module} is not installed.", next_step=SETUP)
    code = f"import {module}; {proof}; print({module}.__version__)"
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupRefused(f"{module} took too long to load.", next_step=SETUP) from error
    if said.returncode != 0:
        last = (said.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupRefused(f"{module} does not load: {last}", next_step=SETUP)
    return f"{module} {said.stdout.strip().splitlines()[-1]} loads."


def _accelerator() -> str:
    """Whether driver, torch and its libraries are compatible, by the trainer's own check."""
    command = [sys.executable, "-P", "-m", "trainer.training.host"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=IMPORT_SECONDS
        )
        found = json.loads(said.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise SetupRefused(f"The trainer cannot look: {error}.", next_step=SETUP) from error
    return accelerator_sentence(found["facts"], found["findings"])


def accelerator_sentence(facts: Mapping[str, Any], findings: Sequence[Mapping[str, str]]) -> str:
    """The accelerator in one sentence, with remarks.

    Raises:
        SetupRefused: the accelerator cannot work as installed.
    """
    for finding in findings:
        if finding["weight"] == "broken":
            raise SetupRefused(finding["sentence"], next_step=finding["next_step"])
    card = facts["card"]
    found = f"{card} with CUDA {facts['driver_cuda']}." if card else "No NVIDIA GPU: the CPU tier."
    return " ".join([found, *(finding["sentence"] for finding in findings)])


def _state_folder(state: Path) -> str:
    if not state.exists():
        parent = next(folder for folder in state.parents if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise SetupRefused(
                f"{state} cannot be made: {parent} is not writable.",
                next_step="Choose another with --state or TUNESMITH_STATE.",
            )
        return f"{state} will be made."
    found = state.stat()
    if found.st_uid != os.geteuid() or not os.access(state, os.W_OK | os.X_OK):
        raise SetupRefused(
            f"{state} belongs to another account or is not writable.",
            next_step="Choose another with --state or TUNESMITH_STATE.",
        )
    if found.st_mode & 0o077:
        raise SetupRefused(
            f"{state} can be read by other accounts.", next_step=f"Run: chmod 700 '{state}'"
        )
    return f"{state} is private."


def _ports(state: Path) -> str:
    if layouts.stack_is_running(state):
        return "The stack runs on its ports."
    found = layouts.choose_ports(layouts.PORT_NAMES, start=0, is_free=layouts.port_is_free)
    return f"{len(found)} free ports were found."
