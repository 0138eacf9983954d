"""The files of this repository and what they import."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT_FOLDERS = ("services", "libs", "deploy")
DESK_SERVICES = ("gateway", "scheduler", "validator", "billing", "hub")
BENCH_SERVICES = ("trainer", "exporter")
SERVICES = (*DESK_SERVICES, *BENCH_SERVICES)
# Leftwards only: a library may import those before it.
LIBRARY_ORDER = ("lexicon", "modelspec", "corpus", "objects", "chassis")
SKIPPED_PARTS = frozenset({"__pycache__", ".venv", "node_modules"})


def python_files(*folders: str) -> Iterator[Path]:
    """Every Python file below the folders, generated ones included."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not SKIPPED_PARTS & set(path.parts):
                yield path


def is_generated(path: Path) -> bool:
    """Whether a program writes this file."""
    return path.name.endswith(("_pb2.py", "_pb2_grpc.py", "_pb2.pyi", "_pb2_grpc.pyi"))


def written_files(*folders: str) -> list[Path]:
    """The Python files that people write."""
    return [path for path in python_files(*folders) if not is_generated(path)]


def shown(path: Path) -> str:
    """A path as it is named in a message."""
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Each imported module with its line; `from a import b` gives a.b, since b may be a module."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        match node:
            case ast.Import(names=names):
                found += [(alias.name, node.lineno) for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found += [(f"{module}.{alias.name}", node.lineno) for alias in names]
            case ast.ImportFrom(level=level) if level:
                found.append(("." * level, node.lineno))
    return tuple(found)


def module_of(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] in ("services", "libs") else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def import_graph() -> Mapping[str, set[str]]:
    """For each file of the product, which others it imports, all by module name."""
    files = {module_of(path) for path in written_files(*PRODUCT_FOLDERS)}
    return {
        module_of(path): {
            found for module, _ in imports(path) if (found := _file_of(module, files))
        }
        - {module_of(path)}
        for path in written_files(*PRODUCT_FOLDERS)
    }


def _file_of(module: str, files: Collection[str]) -> str | None:
    """The file that an import reaches: the module, or the one that has the name."""
    return next((name for name in (module, module.rpartition(".")[0]) if name in files), None)
