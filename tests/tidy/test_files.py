"""Sizes, names and shapes of files."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.tidy import tree

LONGEST_FILE_LINES = 500
LONGEST_FUNCTION_LINES = 70
# A shorter file with one user is a part of its user.
SHORTEST_FILE_LINES = 40
# Not joined yet with their only users, which change at this time; this is to become empty.
WRITTEN_SUFFIXES = (
    ".py",
    ".sql",
    ".proto",
    ".md",
    ".toml",
    ".yml",
    ".yaml",
    ".js",
    ".css",
    ".html",
)
# The acceptance table and the change log grow with the product; vendored files are not ours.
MAY_BE_LONG = ("docs/acceptance.md", "docs/faults.md", "CHANGELOG.md", "tests/golden/")
IS_RUN = 'if __name__ == "__main__":'
FORBIDDEN_NAMES = frozenset(
    {"utils.py", "helpers.py", "types.py", "constants.py", "common.py", "misc.py"}
)
DESK_FILES = frozenset({"__init__.py", "__main__.py", "config.py", "service.py", "wire.py"})
BENCH_FILES = frozenset({"__init__.py", "__main__.py", "config.py", "worker.py", "wire.py"})
OWNS_TABLES = ("scheduler", "billing", "hub")
STORE_FILES = frozenset({"store.py", "queries.sql"})
# Those whose events go out or come in; the hub neither sends nor reads any.
EVENT_FILES = {"scheduler": frozenset({"events.py"}), "billing": frozenset({"events.py"})}


def tracked_files() -> list[Path]:
    """Every file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    return [
        tree.ROOT / name for name in listed.split("\0") if name and (tree.ROOT / name).is_file()
    ]


def test_no_file_is_longer_than_500_lines() -> None:
    """style.md: tidy fails at 500 lines, generated and golden files aside."""
    long = []
    for path in tracked_files():
        if path.suffix not in WRITTEN_SUFFIXES or tree.is_generated(path):
            continue
        if tree.shown(path).startswith(MAY_BE_LONG) or "vendor" in path.parts:
            continue
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LONGEST_FILE_LINES:
            long.append(f"{tree.shown(path)}: {count}")
    assert not long, "\n".join(long)


def test_no_function_is_longer_than_70_lines() -> None:
    """style.md: functions have at most 70 lines."""
    long = []
    for path in tree.written_files("services", "libs", "deploy", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > LONGEST_FUNCTION_LINES:
                    long.append(f"{tree.shown(path)}:{node.lineno} {node.name}: {count}")
    assert not long, "\n".join(long)


def test_no_short_file_has_a_single_user() -> None:
    """style.md: a file under 40 lines is joined with its only user. What is run has no user."""
    users = Counter(module for found in tree.import_graph().values() for module in found)
    short = set()
    for path in tree.written_files("services", "libs", "deploy"):
        text = path.read_text(encoding="utf-8")
        if path.name == "__init__.py" or "migrations" in path.parts or IS_RUN in text:
            continue
        if len(text.splitlines()) < SHORTEST_FILE_LINES and users[tree.module_of(path)] <= 1:
            short.add(tree.shown(path))
    assert not short, "join each with the file that imports it"


def test_every_python_file_has_a_docstring() -> None:
    """style.md: a file opens with what it is."""
    bare = [
        tree.shown(path)
        for path in tree.written_files("services", "libs", "deploy", "tests")
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert not bare, "\n".join(bare)


def test_no_file_is_named_after_a_kind() -> None:
    """style.md: files are split by noun, never by kind."""
    found = [
        tree.shown(path)
        for path in tree.written_files("services", "libs", "deploy", "tests")
        if path.name in FORBIDDEN_NAMES
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("service", tree.SERVICES)
def test_every_service_folder_looks_the_same(service: str) -> None:
    """architecture.md: every service folder has the same file names."""
    folder = tree.ROOT / "services" / service
    needed = set(DESK_FILES if service in tree.DESK_SERVICES else BENCH_FILES)
    if service in OWNS_TABLES:
        needed |= STORE_FILES
    needed |= EVENT_FILES.get(service, frozenset())
    missing = sorted(name for name in needed if not (folder / name).is_file())
    assert not missing, f"services/{service} lacks {', '.join(missing)}"
    assert (folder / "domain").is_dir(), f"services/{service} has no domain/"
    has_migrations = (folder / "migrations").is_dir()
    assert has_migrations == (service in OWNS_TABLES), "migrations/ belongs to owners of tables"


def test_migrations_are_numbered_without_gaps_and_open_with_a_reason() -> None:
    """style.md: migrations are numbered, forward only, and open with a comment saying why."""
    wrong = []
    for service in OWNS_TABLES:
        files = sorted((tree.ROOT / "services" / service / "migrations").glob("*.sql"))
        numbers = [int(path.name.split("_")[0]) for path in files]
        if numbers != list(range(1, len(numbers) + 1)):
            wrong.append(f"{service}: numbers {numbers}")
        wrong += [
            f"{tree.shown(path)} opens with no comment"
            for path in files
            if not path.read_text(encoding="utf-8").lstrip().startswith("--")
        ]
    assert not wrong, "\n".join(wrong)
