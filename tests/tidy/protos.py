"""The contracts: generate code from protos/, and check the protos with buf.

`python -m tests.tidy.protos generate` writes libs/tunesmith/api; `… check` lints, checks the
format, and compares with the last commit, so that no released field changes its meaning.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.tidy import tree

PLUGIN_FOLDER = Path(sys.executable).parent
BUF_SECONDS = 120


def sources() -> list[str]:
    """Every .proto, as protoc wants it: relative to protos/."""
    folder = tree.ROOT / "protos"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))


def generate(into: Path) -> None:
    """Write messages, their types, gRPC stubs and their types into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--proto_path=.",
        f"--plugin=protoc-gen-mypy_grpc={PLUGIN_FOLDER / 'protoc-gen-mypy_grpc'}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_grpc_out={into}",
        *sources(),
    ]
    done = subprocess.run(
        command,
        cwd=tree.ROOT / "protos",
        capture_output=True,
        text=True,
        check=False,
        timeout=BUF_SECONDS,
    )
    if done.returncode != 0:
        sys.exit(f"protoc failed:\n{done.stdout}{done.stderr}")


def write() -> None:
    """Replace libs/tunesmith/api by what the protos say now."""
    api = tree.ROOT / "libs" / "tunesmith" / "api"
    for old in [*api.rglob("*_pb2*.py"), *api.rglob("*_pb2*.pyi")]:
        old.unlink()
    generate(tree.ROOT / "libs")
    shutil.rmtree(api / "__pycache__", ignore_errors=True)


def check() -> int:
    """Lint, format and breaking-change check; the first failing exit code or 0."""
    buf = str(PLUGIN_FOLDER / "buf")
    commands: list[Sequence[str]] = [[buf, "lint"], [buf, "format", "--diff", "--exit-code"]]
    base = _base_commit()
    if base is not None:
        commands.append([buf, "breaking", "--against", f".git#ref={base}"])
    for command in commands:
        done = subprocess.run(command, cwd=tree.ROOT, check=False, timeout=BUF_SECONDS)
        if done.returncode != 0:
            return done.returncode
    return 0


def _base_commit() -> str | None:
    """The commit to compare with: the last one, or the one before when nothing is changed since."""
    for name in ("HEAD", "HEAD~1"):
        commit = _git("rev-parse", "--verify", "--quiet", name)
        if commit and not _git("ls-tree", commit, "--", "protos"):
            return None
        if commit and _git("diff", "--stat", commit, "--", "protos"):
            return commit
    return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUF_SECONDS,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["generate"]:
            write()
        case ["check"]:
            sys.exit(check())
        case _:
            sys.exit("usage: python -m tests.tidy.protos generate|check")
