"""The steps of the bootstrap, in order, with their times."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from deploy.local import llama_build, nats_binary, places, postgres_files, python_parts
from deploy.local.places import Parts
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress

DESCRIPTION = "Sets up everything that the stack without containers needs."
# Environment, packages, torch, the llama.cpp build and its wheel, measured on an empty machine.
NEEDED_DISK_BYTES = 6 * 1024**3


class Steps:
    """Runs named steps and records their durations."""

    def __init__(self, progress: Progress, logs: Path) -> None:
        """Each step logs into a file of its own name."""
        self.progress = progress
        self.logs = logs
        self.seconds: dict[str, float] = {}
        self._guard = threading.Lock()

    def run(self, name: str, step: Callable[[Progress, Path], str]) -> None:
        """Run one step, show it, and record its duration."""
        started = time.monotonic()
        note = step(self.progress, self.logs / f"{name.replace(' ', '-')}.log")
        elapsed = time.monotonic() - started
        with self._guard:
            self.seconds[name] = round(elapsed, 3)
        self.progress.done(name, note, elapsed)


def main(arguments: list[str]) -> int:
    """Parse the arguments, set up, and print where the parts are or what is missing."""
    parser = argparse.ArgumentParser(
        prog="python3 -m deploy.local.bootstrap", description=DESCRIPTION
    )
    parser.add_argument("--json", action="store_true", help="print the parts as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    chosen = parser.parse_args(arguments)
    try:
        parts = set_up(Progress(quiet=chosen.quiet or chosen.json))
    except SetupRefused as refused:
        print(f"setup: {refused}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(asdict(parts), indent=2))
    return 0


def set_up(progress: Progress) -> Parts:
    """Install everything and return the record of it.

    Raises:
        SetupRefused: a requirement is missing that the setup cannot install.
    """
    parts = _ready()
    if parts is not None:
        return parts
    lock = places.repository() / ".venv.lock"
    with places.exclusive(lock, waiting="  … another setup runs in this checkout; waiting"):
        parts = _ready()
        if parts is not None:
            return parts
        _require_platform()
        return _make(progress)


def _make(progress: Progress) -> Parts:
    started = time.monotonic()
    progress.say("Setting up (the first time takes some minutes; later times are instant)")
    steps = Steps(progress, places.cache_folder() / "logs")
    # Check the compiler before minutes of downloads.
    if llama_build.cached_wheel() is None:
        llama_build.require_compilers()
    _require_disk()
    if shutil.which("make") is None:
        progress.say("  ! make is missing: 'make demo' and 'make test' need it")
    steps.run("python", python_parts.make_environment)
    steps.run("uv", python_parts.install_uv)
    steps.run("packages", python_parts.install_lock)
    found: list[nats_binary.NatsBinary] = []

    def nats_step(shown: Progress, log: Path) -> str:
        found.append(nats_binary.find(shown, log.parent))
        return f"{found[0].version} from {found[0].source}"

    # The compiler keeps all cores busy; downloads run beside it.
    with ThreadPoolExecutor(max_workers=2) as pool:
        compiling = pool.submit(
            steps.run, "llama.cpp", lambda shown, log: llama_build.build(shown, log.parent)
        )
        fetching = pool.submit(_fetch_beside, steps, nats_step)
        for job in (fetching, compiling):
            job.result()
    steps.run("llama.cpp install", llama_build.install)
    steps.run("project", python_parts.install_project)
    postgres = postgres_files.find()
    steps.seconds["total"] = round(time.monotonic() - started, 3)
    parts = Parts(
        stamp=_stamp(),
        llama_vendor=str(llama_build.vendor_folder()),
        nats_server=str(found[0].path),
        nats_version=found[0].version,
        nats_source=found[0].source,
        postgres=str(postgres),
        seconds=steps.seconds,
    )
    places.write_parts(parts)
    progress.say(f"Ready after {steps.seconds['total']:.0f} s")
    return parts


def _fetch_beside(steps: Steps, nats_step: Callable[[Progress, Path], str]) -> None:
    steps.run("torch", python_parts.install_torch)
    steps.run("mlx", python_parts.install_mlx)
    steps.run("nats-server", nats_step)


def _ready() -> Parts | None:
    """The record of an earlier setup if its inputs are unchanged."""
    parts = places.read_parts()
    if parts is None or parts.stamp != _stamp():
        return None
    needed = (
        places.environment_python(),
        Path(parts.nats_server),
        Path(parts.postgres) / "bin" / "postgres",
        Path(parts.llama_vendor) / llama_build.VENDOR_ENTRIES[0],
    )
    return parts if all(path.exists() for path in needed) else None


def _stamp() -> str:
    """The inputs of the environment: pins, recipe, platform and folder."""
    return python_parts.stamp_of(
        *python_parts.decided_by(),
        str(places.environment_folder()),
        places.platform_key(),
        *llama_build.CMAKE_OPTIONS,
    )


def _require_platform() -> None:
    system, machine = platform.system(), platform.machine().lower()
    if system in {"Linux", "Darwin"} and machine in {"x86_64", "aarch64", "arm64"}:
        return
    raise SetupRefused(
        f"The stack without containers has no parts for {system} on {machine}.",
        next_step="Use docker compose: docker compose up --build.",
    )


def _require_disk() -> None:
    free_bytes = shutil.disk_usage(places.repository()).free
    if free_bytes < NEEDED_DISK_BYTES:
        raise SetupRefused(
            f"{free_bytes / 1024**3:.1f} GiB of disk are free and the setup needs "
            f"{NEEDED_DISK_BYTES / 1024**3:.0f}.",
            next_step="Free some space or move the checkout to a larger disk.",
        )
