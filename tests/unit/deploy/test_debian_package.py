"""Reading the machine's mirror, and trusting only the pinned bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from deploy.local import debian_package
from deploy.local.refusal import SetupRefused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# a comment\ndeb https://mirror.example/debian bookworm main\n"),
        (
            "sources.list",
            "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian/ sid main\n",
        ),
        ("sources.list.d/debian.sources", "Types: deb\nURIs: https://mirror.example/debian\n"),
    ],
)
def test_the_mirror_is_the_one_that_this_machine_uses(tmp_path: Path, name: str, text: str) -> None:
    """No mirror is written into the repository."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert debian_package.mirror_of(tmp_path).rstrip("/") == "https://mirror.example/debian"


@pytest.mark.parametrize(
    "text",
    ["deb https://mirror.example/ubuntu noble main\n", "deb https://repo.example/apt x main\n"],
)
def test_other_archives_are_no_debian_mirror(tmp_path: Path, text: str) -> None:
    """Ubuntu's archive has no suite called unstable."""
    (tmp_path / "sources.list").write_text(text, encoding="utf-8")
    assert not debian_package.mirror_of(tmp_path)


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    """attacks.md 17: only pinned, hashed tools are run."""
    file = tmp_path / "x.deb"
    file.write_bytes(b"as packed")
    debian_package.require_hash(file, hashlib.sha256(b"as packed").hexdigest())
    file.write_bytes(b"as changed")
    with pytest.raises(SetupRefused, match="not the pinned"):
        debian_package.require_hash(file, hashlib.sha256(b"as packed").hexdigest())
    with pytest.raises(SetupRefused):
        debian_package.require_hash(file, None)
