"""The SDK as a package of its own."""

import ast
import tomllib
from pathlib import Path

SDK = Path(__file__).resolve().parents[3] / "libs" / "tunesmith"
# What users install with it; `tunesmith` and `lexicon` are the package itself.
ALLOWED = frozenset({"google", "grpc", "httpx", "rich", "typer", "tunesmith", "lexicon"})


def project() -> dict[str, object]:
    return tomllib.loads((SDK / "pyproject.toml").read_text("utf-8"))


def test_the_wheel_lists_every_module_and_the_table_of_codes() -> None:
    build: dict[str, str] = project()["tool"]["hatch"]["build"]["targets"]["wheel"][  # type: ignore[index]  # a TOML document
        "force-include"
    ]
    listed = set(build) - {"../lexicon"}
    there = {path.name for path in SDK.glob("*.py")} | {"py.typed"}
    there |= {path.parent.name for path in SDK.glob("*/__init__.py")} | {"api"}
    assert listed == there
    assert build["../lexicon"] == "lexicon"


def test_the_sdk_imports_nothing_beyond_its_dependencies() -> None:
    import sys

    found = set()
    for path in SDK.rglob("*.py"):
        if "api" in path.relative_to(SDK).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) <= ALLOWED


def test_importing_contracts_does_not_import_the_client() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tunesmith.api.run.v1 import run_pb2; "
        "print(sorted({'httpx', 'typer', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
