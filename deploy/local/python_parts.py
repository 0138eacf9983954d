"""The virtual environment: interpreter, uv, the lock, torch, and this project itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local import places
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress, run_tool

INSTALL_SECONDS = 1800.0
PROBE_SECONDS = 60.0
STAMPS_NAME = "tunesmith-steps.json"
# Torch itself is pinned in requirements/torch.txt; what it imports is in the lock.
TORCH_BACKENDS: tuple[list[str], ...] = (["--torch-backend=auto"], [])


def decided_by() -> list[Path]:
    """The files that decide what the environment holds."""
    root = places.repository()
    names = (
        "pyproject.toml",
        "requirements/uv.txt",
        "requirements/lock.txt",
        "requirements/torch.txt",
        "requirements/mlx.txt",
        "requirements/llama.txt",
    )
    return [root / name for name in names]


def stamp_of(*parts: str | Path) -> str:
    """sha256 over texts and the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def is_done(step: str, stamp: str) -> bool:
    """Whether this step succeeded here with exactly these inputs."""
    return _read_stamps().get(step) == stamp


def mark_done(step: str, stamp: str) -> None:
    """Record that it did."""
    text = json.dumps({**_read_stamps(), step: stamp}, indent=2)
    places.write_whole(places.environment_folder() / STAMPS_NAME, text)


def make_environment(progress: Progress, log: Path) -> str:
    """Create the virtual environment unless a working one exists; return a description.

    Raises:
        SetupRefused: this Python cannot create one.
    """
    folder = places.environment_folder()
    if _works(folder):
        return "already there"
    try:
        import ensurepip
        import venv  # noqa: F401 (Debian ships Python without either)
    except ImportError as error:
        raise SetupRefused(
            f"{sys.executable} has no '{error.name}' module, which virtual environments need.",
            next_step="On Debian and Ubuntu: apt install python3-venv; elsewhere install a full "
            "Python 3.11 or newer.",
        ) from error
    assert ensurepip.version()
    command: list[str | Path] = [sys.executable, "-m", "venv", "--clear", folder]
    run_tool(command, label="python", log=log, progress=progress, timeout_seconds=INSTALL_SECONDS)
    return f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"


def install_uv(progress: Progress, log: Path) -> str:
    """Install the pinned uv by the environment's own pip, with its hash checked."""
    wanted = places.repository() / "requirements" / "uv.txt"
    stamp = stamp_of(wanted)
    if is_done("uv", stamp):
        return "already there"
    python = places.environment_python()
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "-r",
        wanted,
    ]
    run_tool(command, label="uv", log=log, progress=progress, timeout_seconds=INSTALL_SECONDS)
    mark_done("uv", stamp)
    return wanted.read_text(encoding="utf-8").split()[0]


def install_lock(progress: Progress, log: Path) -> str:
    """Install every package of the lock, each checked against its hash."""
    wanted = places.repository() / "requirements" / "lock.txt"
    stamp = stamp_of(wanted)
    if is_done("packages", stamp):
        return "already there"
    uv_install(
        ["--no-deps", "--require-hashes", "-r", str(wanted)],
        label="packages",
        log=log,
        progress=progress,
    )
    mark_done("packages", stamp)
    count = sum("==" in line for line in wanted.read_text(encoding="utf-8").splitlines())
    return f"{count} pinned packages"


def install_torch(progress: Progress, log: Path) -> str:
    """Install the torch build that fits this machine.

    First from pip's find-links if configured (a machine with local wheels), then the build that uv
    picks for the accelerator, then the one of the package index.

    Raises:
        SetupRefused: none of the three could be installed.
    """
    wanted = places.repository() / "requirements" / "torch.txt"
    stamp = stamp_of(wanted)
    if is_done("torch", stamp):
        return "already there"
    ways = [*TORCH_BACKENDS]
    links = pip_setting("find-links")
    if links:
        ways.insert(0, ["--no-index", "--no-deps", *_each("--find-links", links)])
    refused: SetupRefused | None = None
    for way in ways:
        try:
            uv_install([*way, "-r", str(wanted)], label="torch", log=log, progress=progress)
        except SetupRefused as error:
            refused = error
            continue
        mark_done("torch", stamp)
        return f"{torch_version()} ({way[0].lstrip('-') if way else 'package index'})"
    assert refused is not None
    raise refused


def install_mlx(progress: Progress, log: Path) -> str:
    """Install MLX if a wheel exists; only tests of its backend need it here.

    Nothing is compiled; without a fitting wheel these tests are skipped.
    """
    wanted = places.repository() / "requirements" / "mlx.txt"
    stamp = stamp_of(wanted)
    if is_done("mlx", stamp):
        return "already there"
    exactly = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)]
    try:
        uv_install(exactly, label="mlx", log=log, progress=progress)
    except SetupRefused:
        return "no wheel fits this machine; tests of the MLX backend are skipped"
    mark_done("mlx", stamp)
    return ", ".join(
        line.split()[0]
        for line in wanted.read_text(encoding="utf-8").splitlines()
        if line.startswith("mlx-lm==")
    )


def install_project(progress: Progress, log: Path) -> str:
    """Install this checkout in place, so that a change in it needs no new install."""
    project = places.repository()
    stamp = stamp_of(project / "pyproject.toml", str(project))
    if is_done("project", stamp):
        return "already there"
    uv_install(
        ["--no-deps", "--no-build-isolation", "--editable", str(project)],
        label="project",
        log=log,
        progress=progress,
    )
    mark_done("project", stamp)
    return "editable"


def uv_install(arguments: list[str], *, label: str, log: Path, progress: Progress) -> None:
    """Run `uv pip install` in the environment, with pip's settings.

    Raises:
        SetupRefused: uv failed.
    """
    python = places.environment_python()
    command: list[str | Path] = [
        python,
        "-m",
        "uv",
        "pip",
        "install",
        "--python",
        python,
        *arguments,
    ]
    run_tool(
        command,
        label=label,
        log=log,
        progress=progress,
        timeout_seconds=INSTALL_SECONDS,
        environment=uv_environment(os.environ),
    )


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's index, mirror and certificate settings under uv's names.

    uv reads none of pip's configuration, so a machine behind a mirror would not find its packages.
    """
    found = {
        "UV_DEFAULT_INDEX": pip_setting("index-url"),
        "SSL_CERT_FILE": pip_setting("cert"),
        "UV_HTTP_TIMEOUT": "180",
        "UV_NO_PROGRESS": "1",
    }
    return {name: value for name, value in found.items() if value and not environ.get(name)}


def pip_setting(name: str) -> str:
    """A setting of pip from its environment variable or its configuration, or an empty text."""
    variable = os.environ.get("PIP_" + name.upper().replace("-", "_"), "")
    if variable:
        return variable
    for section in ("global", "install"):
        found = subprocess.run(
            [places.environment_python(), "-m", "pip", "config", "get", f"{section}.{name}"],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.strip()
    return ""


def torch_version() -> str:
    """The version of torch in the environment, without importing it."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    command = [str(places.environment_python()), "-c", code]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    return found.stdout.strip()


def _read_stamps() -> dict[str, str]:
    try:
        text = (places.environment_folder() / STAMPS_NAME).read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError):
        return {}


def _works(folder: Path) -> bool:
    """Whether its interpreter starts, is new enough, has pip and reports this prefix.

    After a move of the checkout the scripts of its environment point to the old folder.
    """
    code = "import sys, pip; print(sys.prefix, *sys.version_info[:2], sep='\\n')"
    try:
        found = subprocess.run(
            [folder / "bin" / "python", "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        prefix, major, minor = found.stdout.split("\n")[:3]
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return Path(prefix) == folder and (int(major), int(minor)) >= (3, 11) and _scripts_fit(folder)


def _scripts_fit(folder: Path) -> bool:
    script = folder / "bin" / "pip"
    try:
        head = script.read_bytes()[:1024]
    except OSError:
        return True
    return str(folder).encode() in head


def _each(option: str, values: str) -> list[str]:
    return [word for value in values.split() for word in (option, value)]
