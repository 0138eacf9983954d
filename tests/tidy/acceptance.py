"""`python -m tests.tidy.acceptance`: which rows of the acceptance table tests name.

A row is named when its id stands in the docstring of a test function or of a test class. Whether
those tests show the row is for a reader to judge, so each row is printed with its number of tests.
The rulings, A1 to A18, count as rows.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from tests.tidy import tree

TABLE = tree.ROOT / "docs" / "acceptance.md"
ROW = re.compile(r"^\| (00[0-4]-[0-9]{2}|A[0-9]{1,2}) \|", re.MULTILINE)
NAMED = re.compile(r"\b(00[0-4]-[0-9]{2}|A(?:1[0-8]|[1-9]))\b")


def rows() -> list[str]:
    """The ids of the table, in its order."""
    return list(dict.fromkeys(ROW.findall(TABLE.read_text(encoding="utf-8"))))


def namings() -> dict[str, list[str]]:
    """For each id, the tests that name it in their docstring."""
    found: dict[str, list[str]] = {}
    for path in tree.written_files("tests"):
        if path.name.startswith("test_"):
            for name, text in _docstrings(path):
                for row in NAMED.findall(text):
                    found.setdefault(row, []).append(f"{tree.shown(path)}::{name}")
    return found


def main() -> int:
    """Print named / total, the number of tests of each row, and what is missing."""
    if not TABLE.is_file():
        print(f"{tree.shown(TABLE)} is missing")
        return 1
    wanted, named = rows(), namings()
    missing = [row for row in wanted if row not in named]
    unknown = sorted(set(named) - set(wanted))
    for row in wanted:
        print(f"{row:<6} {len(named.get(row, []))}")
    print(f"{len(wanted) - len(missing)} / {len(wanted)} rows of the acceptance table are named")
    if missing:
        print("named by no test: " + " ".join(missing))
    if unknown:
        print("named by tests and not in the table: " + " ".join(unknown))
    return 1 if unknown else 0


def _docstrings(path: Path) -> list[tuple[str, str]]:
    module = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    found = []
    for node in ast.walk(module):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ) if name.startswith(("test_", "Test")):
                found.append((name, ast.get_docstring(node) or ""))
    return found


if __name__ == "__main__":
    sys.exit(main())
