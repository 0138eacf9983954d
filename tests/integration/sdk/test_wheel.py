"""The SDK's wheel, alone in a fresh virtual environment."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SDK = Path(__file__).resolve().parents[3] / "libs" / "tunesmith"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    hatchling = str(Path(sys.executable).with_name("hatchling"))
    subprocess.run(
        [hatchling, "build", "-t", "wheel", "-d", str(folder)],
        cwd=SDK,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return next(folder.glob("tunesmith-*.whl"))


def test_the_wheel_holds_sdk_and_codes_and_no_service(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lexicon", "tunesmith"}


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    """The generated ones too: nothing is generated where the wheel is installed."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith(".py")}
        about = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "unasync" not in archive.read(about).decode()
    there = {f"tunesmith/{path.relative_to(SDK).as_posix()}" for path in SDK.rglob("*.py")}
    assert {name for name in names if name.startswith("tunesmith/")} == there
    assert "tunesmith/client/connection.py" in there


def test_the_wheel_installs_alone_and_its_command_runs(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "--quiet", "--python", python, str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=240)
    command = str(home / "bin" / "tunesmith")
    shown = _run(command, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "dataset" in shown.stdout
    assert _run(command, "fault", "explain", "RUNTIME_GPU_OOM", cwd=tmp_path).returncode == 0
    refused = _run(command, "run", "list", cwd=tmp_path)
    assert refused.returncode == 5
    assert "ACCESS_TOKEN_MISSING" in refused.stderr
    assert "Traceback" not in refused.stderr
    imports = "import tunesmith; tunesmith.Client; tunesmith.AsyncClient"
    subprocess.run([python, "-c", imports], check=True, timeout=60, cwd=tmp_path)


def _run(command: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "100"}
    return subprocess.run(
        [command, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env=environ,
    )
