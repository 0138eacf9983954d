"""What the repository's texts must not contain, and how its pages are wrapped."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.tidy import tree
from tests.tidy.test_files import tracked_files

# Spelled in pieces, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
STUB = re.compile(r"\braise NotImplemented" r"Error\b")
REGISTRY_HOSTS = re.compile(
    r"\b(?:files\.python"
    r"hosted\.org|py"
    r"pi\.org|registry\.npm"
    r"js\.org|deb\.deb"
    r"ian\.org"
    r"|download\.py"
    r"torch\.org|archive\.ubun"
    r"tu\.com|proxy\.gol"
    r"ang\.org)\b"
)
MACHINE_PATHS = re.compile(
    r"(?<![\w.$~-])/(?:" r"work/(?:main|shared)|" r"root/|" r"opt/(?:wheels|pypi)|" r"home/\w+/)"
)
READ_SUFFIXES = frozenset(
    {
        ".py",
        ".md",
        ".toml",
        ".yml",
        ".yaml",
        ".txt",
        ".sql",
        ".proto",
        ".conf",
        ".sh",
        ".json",
        ".html",
        ".js",
        ".css",
        ".in",
        ".jinja",
        "",
    }
)
PROSE_COLUMNS = 100
DANGEROUS_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "unpickles",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "joblib.load": "unpickles",
    "os.system": "goes through a shell",
    "marshal.loads": "loads code",
}
DANGEROUS_MODULES = frozenset(
    {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
)
DANGEROUS_FLAGS = frozenset({"trust_remote_code", "allow_pickle", "shell"})


def texts() -> list[tuple[Path, str]]:
    """Every text file that people write, with its content."""
    return [
        (path, path.read_text(encoding="utf-8", errors="replace"))
        for path in tracked_files()
        if path.suffix in READ_SUFFIXES
        and not tree.is_generated(path)
        and path.stat().st_size < 2_000_000
    ]


def prose_lines(markdown: str) -> list[tuple[int, str]]:
    """Lines of a page with their numbers, without tables and fenced code."""
    found = []
    is_code = False
    for number, line in enumerate(markdown.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            found.append((number, line))
    return found


def found_lines(pattern: re.Pattern[str], *, below: tuple[str, ...] = ("",)) -> list[str]:
    """File and line of each match."""
    return [
        f"{tree.shown(path)}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        if tree.shown(path).startswith(below)
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_nothing_is_left_unfinished() -> None:
    """style.md: no unfinished marks, no stubs."""
    found = found_lines(
        UNFINISHED, below=("services", "libs", "deploy", "tests", "protos", "Makefile")
    )
    found += found_lines(STUB, below=("services", "libs", "deploy"))
    assert not found, "\n".join(found)


def test_no_registry_host_names() -> None:
    """A mirror is a matter of the machine's configuration, never of the repository."""
    found = found_lines(REGISTRY_HOSTS)
    assert not found, "\n".join(found)


def test_no_paths_of_one_machine() -> None:
    """What one machine calls a folder does not hold on another."""
    found = found_lines(MACHINE_PATHS)
    assert not found, "\n".join(found)


def test_prose_of_markdown_is_wrapped() -> None:
    """style.md: lines of prose end at 100 columns; tables, code and single words may be longer."""
    found = [
        f"{tree.shown(path)}:{number}: {len(line)} columns"
        for path, text in texts()
        if path.suffix == ".md"
        for number, line in prose_lines(text)
        if len(line) > PROSE_COLUMNS and " " in line.strip()
    ]
    assert not found, "\n".join(found)


def test_product_code_never_unpickles_evaluates_or_uses_a_shell() -> None:
    """attacks.md 1 and 2: no code path from data to code."""
    found = []
    for path in tree.written_files("services", "libs", "deploy"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found += [f"{tree.shown(path)}:{node.lineno} {why}" for why in _dangers(node)]
        found += [
            f"{tree.shown(path)}:{line} imports {module}"
            for module, line in tree.imports(path)
            if module.split(".")[0] in DANGEROUS_MODULES
        ]
    assert not found, "\n".join(found)


def _dangers(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    found = [f"{name} {DANGEROUS_CALLS[name]}"] if name in DANGEROUS_CALLS else []
    for keyword in call.keywords:
        given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in DANGEROUS_FLAGS and given is True:
            found.append(f"{keyword.arg}=True")
    return found
