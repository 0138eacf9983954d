"""What programs write is what they would write now."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tidy import protos, sync_client, tree


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    """style.md: generated artefacts are verified by generating anew and comparing."""
    protos.generate(tmp_path)
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*_pb2*.py*")}
    libs = tree.ROOT / "libs"
    kept = {
        path.relative_to(libs): path
        for path in (libs / "tunesmith" / "api").rglob("*_pb2*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    assert sorted(map(str, made)) == sorted(map(str, kept)), "run: make protos"
    stale = [str(name) for name in made if made[name].read_bytes() != kept[name].read_bytes()]
    assert not stale, f"stale, run make protos: {stale}"


def test_the_sync_client_is_fresh(tmp_path: Path) -> None:
    """ADR 13: the client is written once, for asyncio; the other one is generated."""
    sync_client.generate(tmp_path)
    made, kept = sync_client.generated(tmp_path), sync_client.generated(sync_client.TARGET)
    assert sorted(made) == sorted(kept), "run: make client"
    stale = [name for name in made if made[name].read_bytes() != kept[name].read_bytes()]
    assert not stale, f"stale, run make client: {stale}"


@pytest.mark.parametrize("name", sorted(sync_client.WRITTEN_TWICE))
def test_what_is_written_twice_defines_the_same_names(name: str) -> None:
    """ADR 13: the generated client imports from one what its source imports from the other."""
    ours, theirs = (
        _public_names(folder / name) for folder in (sync_client.SOURCE, sync_client.TARGET)
    )
    assert ours == theirs


def _public_names(path: Path) -> list[str]:
    """What a module lists in `__all__`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return sorted(ast.literal_eval(value))
    pytest.fail(f"{tree.shown(path)} has no __all__")
