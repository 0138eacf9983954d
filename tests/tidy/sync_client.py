"""The client without asyncio: generate libs/tunesmith/client from libs/tunesmith/aio.

`python -m tests.tidy.sync_client` writes it. unasync takes `async` and `await` away and replaces
names; ruff then sorts the imports and formats, as it does for files that people write.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import unasync

from tests.tidy import tree

SOURCE = tree.ROOT / "libs" / "tunesmith" / "aio"
TARGET = tree.ROOT / "libs" / "tunesmith" / "client"
# What waits and connects is written twice, with the same names: each way needs its own library.
WRITTEN_TWICE = frozenset({"io.py"})
# Beside what unasync replaces by itself: `AsyncIterator`, `__aenter__` and their like.
REPLACEMENTS = {"AsyncClient": "Client", "aio": "client", "aiter_bytes": "iter_bytes"}
HEADER = "# Generated from tunesmith/aio/{name} by `make client`; do not edit.\n"
RUFF_SECONDS = 60


def generated(folder: Path) -> dict[str, Path]:
    """The generated modules, or those that they are made from, by file name."""
    return {path.name: path for path in folder.glob("*.py") if path.name not in WRITTEN_TWICE}


def generate(into: Path) -> None:
    """Write the modules of the sync client into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "aio", Path(scratch) / "client"
        source.mkdir()
        for name, path in generated(SOURCE).items():
            shutil.copyfile(path, source / name)
        rule = unasync.Rule(f"{source}/", f"{target}/", additional_replacements=REPLACEMENTS)
        unasync.unasync_files([str(path) for path in generated(source).values()], [rule])
        for name, path in generated(target).items():
            text = path.read_text(encoding="utf-8")
            path.write_text(HEADER.format(name=name) + text, encoding="utf-8")
        _ruff("check", "--quiet", "--select", "I", "--fix", str(target))
        _ruff("format", "--quiet", str(target))
        for name, path in generated(target).items():
            shutil.copyfile(path, into / name)


def write() -> None:
    """Replace the sync client by what its source says now."""
    for old in generated(TARGET).values():
        old.unlink()
    generate(TARGET)


def _ruff(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("ruff")), *arguments]
    command += ["--no-cache", "--config", str(tree.ROOT / "pyproject.toml")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=RUFF_SECONDS
    )
    if done.returncode != 0:
        sys.exit(f"ruff failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    write()
