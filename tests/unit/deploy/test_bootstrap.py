"""The bootstrap: what it says to machines that lack something, and when it has nothing to do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import bootstrap, llama_build, places, python_parts
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress
from tests.tidy import tree

# What an old enterprise distribution ships as python3.
OLD_SYNTAX = (3, 6)


def test_older_pythons_can_read_the_file_that_sends_them_away() -> None:
    """A syntax error would be no clear sentence."""
    source = (tree.ROOT / "deploy" / "local" / "bootstrap.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=OLD_SYNTAX)
    assert "import annotations" not in source, "unknown before Python 3.7"
    package = (tree.ROOT / "deploy" / "local" / "__init__.py").read_text(encoding="utf-8")
    ast.parse(package, feature_version=OLD_SYNTAX)


def test_a_python_that_is_too_old_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When no newer one is on PATH."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setenv("PATH", "")
    assert bootstrap.main() == 1
    said = capsys.readouterr().err
    assert "Python 3.9 is too old." in said
    assert "Install Python 3.11 or newer" in said
    assert said.count("\n") == 1


def test_windows_is_sent_to_docker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are no parts for it."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert bootstrap.main() == 1
    assert "docker compose" in capsys.readouterr().err


def test_a_missing_compiler_is_named_with_the_package_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """002-27, 003-16: build-essential on Linux, said before anything is downloaded."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupRefused, match="No working C compiler") as refused:
        llama_build.require_compilers()
    assert "build-essential" in refused.value.next_step


def test_a_compiler_that_compiles_nothing_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has a cc that only asks to install the real one."""
    stub = tmp_path / "cc"
    stub.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setenv("CC", str(stub))
    with pytest.raises(SetupRefused, match="No working C compiler"):
        llama_build.require_compilers()


def test_a_python_without_venv_is_told_the_package_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian splits it off."""
    monkeypatch.setattr(places, "environment_folder", lambda: tmp_path / ".venv")
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SetupRefused, match="has no 'ensurepip' module") as refused:
        python_parts.make_environment(Progress(quiet=True), tmp_path / "log")
    assert "apt install python3-venv" in refused.value.next_step


def test_settings_of_pip_reach_uv_and_the_users_own_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """uv reads none of pip's configuration; a machine behind a mirror has only that."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_CERT", "/etc/mirror.pem")
    found = python_parts.uv_environment({})
    assert found["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert found["SSL_CERT_FILE"] == "/etc/mirror.pem"
    assert "UV_DEFAULT_INDEX" not in python_parts.uv_environment({"UV_DEFAULT_INDEX": "own"})


def test_the_stamp_changes_with_every_file_that_decides(tmp_path: Path) -> None:
    """A changed lock is never taken for the old one."""
    file = tmp_path / "lock.txt"
    file.write_text("a==1", encoding="utf-8")
    first = python_parts.stamp_of(file, "flags")
    assert python_parts.stamp_of(file, "flags") == first
    assert python_parts.stamp_of(file, "other") != first
    file.write_text("a==2", encoding="utf-8")
    assert python_parts.stamp_of(file, "flags") != first
    assert all(path.is_file() for path in python_parts.decided_by())


def test_a_second_bootstrap_has_nothing_to_do() -> None:
    """The suite itself runs in an environment that the bootstrap has made."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local.bootstrap"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout + done.stderr == ""


def test_a_whole_file_is_written_or_none(tmp_path: Path) -> None:
    """A reader never sees a part, and a failed write leaves no rest behind."""
    path = tmp_path / "record.json"
    places.write_whole(path, "old")
    with pytest.raises(TypeError):
        places.write_whole(path, b"not text")  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == "old"
    places.write_whole(path, "new", mode=0o600)
    assert path.read_text(encoding="utf-8") == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_private_folder_on_the_way_keeps_other_accounts_out(tmp_path: Path) -> None:
    """Under a home of mode 0700 another account cannot walk to the Postgres binaries."""
    outer = tmp_path / "home"
    inner = outer / "bin"
    inner.mkdir(parents=True)
    outer.chmod(0o700)
    assert not places.reachable_by_others(inner)


def test_the_cache_goes_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_CACHE_HOME, and one sentence when it cannot be used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.cache_folder() == tmp_path / "cache" / "tunesmith"
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SetupRefused, match="cannot be made"):
        places.cache_folder()


def test_two_setups_at_once_take_turns(tmp_path: Path) -> None:
    """The lock is held by a living process and dropped with it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom deploy.local import places\n"
        "with places.exclusive(Path(sys.argv[1]), waiting='waiting'):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree.ROOT)},
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "in\n"
        assert not _free(tmp_path / "lock")
    finally:
        holder.communicate(timeout=20)
    assert _free(tmp_path / "lock")


def _free(path: Path) -> bool:
    import fcntl

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
