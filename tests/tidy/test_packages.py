"""The dependencies: each pinned, each with its reason, each locked with hashes."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata

from tests.tidy import tree

ENTRY = re.compile(r'^\s*"(?P<name>[A-Za-z0-9._-]+)(?P<pin>[^"]*)",?\s*(?P<comment>#.*)?$')
# The whole of what 003-14 lists, at the versions it asks for or newer.
LOCK_SUPERSET = {
    "transformers": (4, 36, 0),
    "peft": (0, 7, 0),
    "accelerate": (0, 24, 0),
    "huggingface-hub": (0, 20, 0),
    "sentencepiece": (0, 1, 99),
    "protobuf": (3, 20, 0),
    "numpy": (0,),
    "gguf": (0,),
}


# Installed by steps of their own, see deploy/local/bootstrap.py; `conversion` comes with llama.cpp.
INSTALLED_APART = frozenset({"torch", "llama-cpp-python", "conversion"})
OWN = frozenset({*tree.SERVICES, *tree.LIBRARY_ORDER, "tunesmith", "deploy", "tests"})


def dependency_lines() -> list[re.Match[str]]:
    """Every entry of every dependency list in pyproject.toml."""
    text = (tree.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found, inside = [], False
    for line in text.split("[project.scripts]", maxsplit=1)[0].splitlines():
        if re.match(r"^(dependencies|[a-z-]+) = \[$", line) and "classifiers" not in line:
            inside = True
        elif line.startswith("]"):
            inside = False
        elif inside and (match := ENTRY.match(line)):
            found.append(match)
    return found


def lock_text() -> str:
    """The lock as text."""
    return (tree.ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")


def locked() -> dict[str, str]:
    """Version by package name."""
    return versions_in("lock.txt")


def versions_in(name: str) -> dict[str, str]:
    """Version by package name of one of the files of requirements."""
    text = (tree.ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, re.MULTILINE))


def test_every_dependency_is_pinned_and_has_its_reason() -> None:
    """003-14, 003-17: a complete list with pins, and a comment on why each is needed."""
    lines = dependency_lines()
    declared = tomllib.loads((tree.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"].values()
    assert len(lines) == len(declared["dependencies"]) + sum(map(len, extras))
    for line in lines:
        assert line["pin"].startswith("=="), f"{line['name']} is not pinned"
        assert line["comment"], f"{line['name']} has no reason"
        assert len(line["comment"].split()) > 2, f"{line['name']}: {line['comment']}"


def test_the_lock_holds_what_conversion_needs() -> None:
    """003-14: the lock is a superset of the listed packages, sentencepiece and protobuf too."""
    versions = locked()
    for name, floor in LOCK_SUPERSET.items():
        numbers = tuple(int(part) for part in versions[name].split(".")[:3])
        assert numbers >= floor, f"{name} {versions[name]}"
    torch = (tree.ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==[2-9]\.", torch, re.MULTILINE)


def test_the_lock_is_hashed_and_free_of_hosts_paths_and_accelerators() -> None:
    """The lock installs on any machine: torch and CUDA come by a step of their own."""
    text = lock_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?://|file:|index-url|find-links", text)
    names = locked()
    assert "torch" not in names
    assert "triton" not in names
    accelerators = {name for name in names if name.startswith("nvidia-")} - {"nvidia-ml-py"}
    assert not accelerators


def test_every_pinned_dependency_is_in_the_lock_at_that_version() -> None:
    """pyproject.toml and the lock do not drift apart."""
    # MLX has a lock of its own: a machine without a wheel of it still gets everything else.
    versions = {**versions_in("mlx.txt"), **locked()}
    # For GPUs alone, or for nodes whose operator wants their tracking tool.
    optional = {"bitsandbytes", "unsloth", "wandb"}
    for line in dependency_lines():
        if line["name"] not in optional:
            pin = line["pin"].removeprefix("==").split(";")[0].strip()
            assert versions[line["name"].lower()] == pin, f"{line['name']}: run make lock"


def test_every_imported_package_is_declared() -> None:
    """003-17: nothing is used that only another package happens to bring along."""
    declared = {line["name"].lower().replace("_", "-") for line in dependency_lines()}
    packages = metadata.packages_distributions()
    undeclared = set()
    for path in tree.written_files("services", "libs", "deploy", "tests"):
        for module, _ in tree.imports(path):
            top = module.split(".")[0]
            if not top or top in OWN or top in sys.stdlib_module_names:
                continue
            names = {name.lower().replace("_", "-") for name in packages.get(top, [top])}
            if not names & (declared | INSTALLED_APART):
                undeclared.add(f"{top} ({tree.shown(path)})")
    assert not undeclared, sorted(undeclared)
