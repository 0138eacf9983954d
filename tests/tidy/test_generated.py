"""What programs write is what they would write now."""

from __future__ import annotations

from pathlib import Path

from tests.tidy import protos, tree


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
