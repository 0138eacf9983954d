"""Who may import whom."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.tidy import tree

DOMAIN_MAY = frozenset({"numpy", "lexicon", "modelspec", "corpus"})
SDK_MAY = frozenset(
    {
        "grpc",
        "grpc_status",
        "google",
        "lexicon",
        "tunesmith",
        "httpx",
        "typer",
        "rich",
        "tomli_w",
        "click",
    }
)
ONLY_STANDARD_LIBRARY = ("lexicon", "modelspec")
HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "bitsandbytes", "unsloth"})
# Where weights are touched. The exporter reads them with numpy and runs the converter in a process
# of its own, so torch stays in the trainer alone; tokenizers come through transformers in both.
TORCH_HOME = "services/trainer/training/"
# What drives or patches llama.cpp's converter, and the one module of it that others import.
CONVERSION = "exporter.engine.conversion"
CONVERSION_ENTRY = f"{CONVERSION}.process"
SQL_HOMES = ("store.py",)
SQL_DRIVERS = frozenset({"asyncpg"})
SQL_LIBRARIES = ("libs/chassis/", "deploy/local/", "tests/")


def top(module: str) -> str:
    """The first part of a dotted name."""
    return module.split(".", maxsplit=1)[0]


def own_domain(path: Path) -> str:
    """The service that a file of services/ belongs to."""
    return path.relative_to(tree.ROOT).parts[1]


def broken(rule: str, found: list[tuple[Path, str, int]]) -> str:
    """What a failing test says."""
    lines = [f"{tree.shown(path)}:{line} imports {module}" for path, module, line in found]
    return f"{rule}:\n" + "\n".join(lines)


def all_imports(*folders: str) -> list[tuple[Path, str, int]]:
    """File, module, line of every import below the folders."""
    return [
        (path, module, line)
        for path in tree.written_files(*folders)
        for module, line in tree.imports(path)
    ]


def test_a_service_never_imports_another_service() -> None:
    """architecture.md: a service never imports another service."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services")
        if top(module) in tree.SERVICES and top(module) != own_domain(path)
    ]
    assert not found, broken("a service imports another service", found)


def test_libraries_never_import_services_or_deploy() -> None:
    """architecture.md: libs never import services."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("libs")
        if top(module) in {*tree.SERVICES, "deploy", "tests"}
    ]
    assert not found, broken("a library imports what is built on it", found)


def test_services_never_import_deploy_or_tests() -> None:
    """Each image holds libs/ and its own service folder only."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services")
        if top(module) in {"deploy", "tests"}
    ]
    assert not found, broken("a service imports what its image does not hold", found)


@pytest.mark.parametrize("library", tree.LIBRARY_ORDER)
def test_libraries_import_leftwards_only(library: str) -> None:
    """architecture.md: lexicon ← modelspec ← corpus ← objects ← chassis."""
    allowed = tree.LIBRARY_ORDER[: tree.LIBRARY_ORDER.index(library) + 1]
    found = [
        (path, module, line)
        for path, module, line in all_imports(f"libs/{library}")
        if top(module) in tree.LIBRARY_ORDER and top(module) not in allowed
    ]
    assert not found, broken(f"{library} imports a library to its right", found)


@pytest.mark.parametrize("library", ONLY_STANDARD_LIBRARY)
def test_lexicon_and_modelspec_use_the_standard_library_only(library: str) -> None:
    """architecture.md: standard library only; modelspec may also use lexicon."""
    found = [
        (path, module, line)
        for path, module, line in all_imports(f"libs/{library}")
        if top(module) not in sys.stdlib_module_names and top(module) not in {"lexicon", library}
    ]
    assert not found, broken(f"{library} imports more than the standard library", found)


def test_domain_uses_only_plain_python_numpy_and_the_pure_libraries() -> None:
    """architecture.md: decisions live in domain/: no clock, no socket, no SQL."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services")
        if "domain" in path.relative_to(tree.ROOT).parts
        and top(module) not in sys.stdlib_module_names
        and top(module) not in DOMAIN_MAY
        and not module.startswith(f"{own_domain(path)}.domain")
    ]
    assert not found, broken("domain/ reaches outside", found)


def test_domain_has_no_io_of_the_standard_library() -> None:
    """style.md: no I/O, clocks or randomness in domain/; they come in as arguments."""
    forbidden = {
        "asyncio",
        "socket",
        "subprocess",
        "threading",
        "urllib.request",
        "http",
        "time",
        "secrets",
        "sqlite3",
        "multiprocessing",
    }
    found = [
        (path, module, line)
        for path, module, line in all_imports("services")
        if "domain" in path.relative_to(tree.ROOT).parts
        and any(f"{module}.".startswith(f"{name}.") for name in forbidden)
    ]
    assert not found, broken("domain/ does I/O", found)


def test_only_the_training_folder_sees_torch() -> None:
    """architecture.md: only trainer/training/** sees torch."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services", "libs")
        if top(module) == "torch" and not tree.shown(path).startswith(TORCH_HOME)
    ]
    assert not found, broken("torch outside of trainer/training", found)


def test_the_converter_has_one_entry() -> None:
    """Whoever looks for what depends on llama.cpp's converter finds all of it in one package."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services")
        if f"{module}.".startswith(f"{CONVERSION}.")
        and not f"{module}.".startswith(f"{CONVERSION_ENTRY}.")
        and not tree.module_of(path).startswith(CONVERSION)
    ]
    assert not found, broken(f"the converter is reached past {CONVERSION_ENTRY}", found)


def test_desk_services_see_nothing_heavy() -> None:
    """A desk service answers calls; model code belongs to the workers."""
    found = [
        (path, module, line)
        for path, module, line in all_imports(*(f"services/{name}" for name in tree.DESK_SERVICES))
        if top(module) in HEAVY
    ]
    assert not found, broken("a desk service imports model code", found)


def test_only_store_and_chassis_see_the_database_driver() -> None:
    """architecture.md: only store.py sees SQL."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services", "libs")
        if top(module) in SQL_DRIVERS
        and path.name not in SQL_HOMES
        and not tree.shown(path).startswith(SQL_LIBRARIES)
    ]
    assert not found, broken("the database driver outside of store.py", found)


def test_stores_take_and_give_values() -> None:
    """Rows go in and out as values; what goes over the wire is encoded by whoever calls a store."""
    found = [
        f"{tree.shown(path)}:{line} imports {module}"
        for path in tree.written_files("services")
        if path.name in ("store.py", "rows.py") or path.name.endswith("_store.py")
        for module, line in tree.imports(path)
        if module.startswith(("tunesmith.", "google.protobuf"))
        or any(part == "events" or part.startswith("wire") for part in module.split(".")[1:2])
    ]
    assert not found, "\n".join(found)


def test_the_sdk_sees_grpc_protobuf_and_lexicon_only() -> None:
    """architecture.md: the SDK sees grpc, protobuf and lexicon, never torch, numpy or chassis."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("libs/tunesmith")
        if top(module) not in sys.stdlib_module_names and top(module) not in SDK_MAY
    ]
    assert not found, broken("the SDK imports more than its users install", found)


def test_no_relative_imports() -> None:
    """Path = import: every import says its whole path."""
    found = [
        (path, module, line)
        for path, module, line in all_imports("services", "libs", "deploy", "tests")
        if module.startswith(".")
    ]
    assert not found, broken("a relative import", found)


def test_no_files_import_each_other_in_a_circle() -> None:
    """A reader follows imports downwards to an end; imports inside functions count as well."""
    assert not (circles := _circles(tree.import_graph())), "\n".join(
        " -> ".join(each) for each in circles
    )


def _circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of files that reach each other, each sorted; by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    return found
