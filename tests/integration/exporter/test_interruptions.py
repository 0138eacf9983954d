"""Killed and starved exports: never a published half file, and the retry completes."""

import asyncio
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.child import Child
from exporter.engine.base import cache_key, prepare_base
from exporter.engine.export import Engine, export
from exporter.pipe import Export
from lexicon.faults import Fault
from tests.integration.exporter.making import ANVIL

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

KILLS = 100
FULL_DISKS = 100
RUN_SECONDS = 240.0
MEBIBYTE = 1 << 20
# What the export of the demo's model needs on the work disk at the most.
NEEDED_BYTES = 3 * MEBIBYTE


def wishes_of(adapter: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(ANVIL),
        "base_key": "interruptions",
        "base_model": "tunesmith/anvil-3m",
        "adapter": str(adapter),
        "quantization": "Q4_K_M",
        "run": "projects/local/runs/run-1",
    }


async def test_a_child_that_is_killed_anywhere_leaves_nothing_half_made(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """kill -9 at random moments of one export after another, in the same folder."""
    target = tmp_path / "work" / "bundle.zip"
    target.parent.mkdir()
    wishes = wishes_of(adapter_of(b_std=0.3))
    job = Export(**wishes, target=str(target))
    child = await start(engine, tmp_path)
    await asyncio.wait_for(child.export(job, lambda _progress: None), RUN_SECONDS)
    await child.kill()
    whole = target.read_bytes()
    target.unlink()
    rng = random.Random(1)
    killed = 0
    for _ in range(KILLS):
        child = await start(engine, tmp_path)
        work = asyncio.create_task(child.export(job, lambda _progress: None))
        await asyncio.sleep(rng.uniform(0.0, 0.12))
        await child.kill()
        try:
            await asyncio.wait_for(work, RUN_SECONDS)
        except Fault:
            killed += 1
        if target.exists():
            assert target.read_bytes() == whole
            target.unlink()
    assert killed > KILLS // 4
    child = await start(engine, tmp_path)
    await asyncio.wait_for(child.export(job, lambda _progress: None), RUN_SECONDS)
    await child.kill()
    assert target.read_bytes() == whole
    assert [path.name for path in target.parent.iterdir()] == ["bundle.zip"]


async def start(engine: Engine, tmp_path: Path) -> Child:
    child = await Child.start(
        log_path=tmp_path / "child.log", cache=engine.cache, vendor=engine.vendor, thread_count=2
    )
    await child.ready()
    return child


async def test_a_conversion_that_is_killed_leaves_no_half_base(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "work").mkdir()
    job = Export(**wishes_of(adapter_of(b_std=0.3)), target=str(tmp_path / "work" / "bundle.zip"))
    (cache / "kernels").mkdir(parents=True)
    (cache / f"selftest-{_version()}.passed").touch()
    for seconds in (0.3, 1.0, 2.0):
        child = await Child.start(
            log_path=tmp_path / "child.log", cache=cache, vendor=engine.vendor, thread_count=2
        )
        await child.ready()
        work = asyncio.create_task(child.export(job, lambda _progress: None))
        await asyncio.sleep(seconds)
        await child.kill()
        with pytest.raises(Fault):
            await work
        complete = [path for path in cache.glob("*/placements.json") if ".partial" not in str(path)]
        assert complete == []
    key = cache_key(job.base_key, llama_version=_version())
    base = prepare_base(ANVIL, cache, key, vendor=engine.vendor)
    assert len(base.placements()) > 0
    assert not list(cache.glob("*.partial"))


def _version() -> str:
    from importlib.metadata import version

    return version("llama-cpp-python")


@pytest.mark.parametrize("checks_first", [True, False])
def test_a_full_disk_has_its_code_and_the_retry_completes(
    checks_first: bool, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """ENOSPC at random sizes of the disk: refused before any work, or met in the middle of it."""
    require_own_mounts()
    folder = tmp_path / "disk"
    folder.mkdir()
    adapter = adapter_of(b_std=0.3)
    prepare = cache_key("interruptions", llama_version="test")
    prepare_base(ANVIL, engine.cache, prepare, vendor=engine.vendor)
    rng = random.Random(2)
    for _ in range(FULL_DISKS // 2):
        size = rng.randrange(4096, NEEDED_BYTES if not checks_first else 60 * MEBIBYTE)
        outcome = starve(
            {
                "folder": str(folder),
                "disk_bytes": size,
                "checks_first": checks_first,
                "cache": str(engine.cache),
                "kernels": str(engine.cache / "kernels"),
                "vendor": str(engine.vendor),
                "job": wishes_of(adapter),
            }
        )
        if outcome["first"] == "exported":
            continue
        assert outcome["first"] == "EXPORT_DISK_FULL", (size, outcome)
        assert "bundle.zip" not in outcome["left"], (size, outcome)
        assert outcome["second"] == "exported", (size, outcome)


@pytest.mark.parametrize("size", [1 * MEBIBYTE, 5 * MEBIBYTE, 8 * MEBIBYTE])
def test_a_disk_that_fills_while_a_base_is_converted_has_the_same_code(
    size: int, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    require_own_mounts()
    folder = tmp_path / "disk"
    folder.mkdir()
    outcome = starve(
        {
            "folder": str(folder),
            "disk_bytes": size,
            "checks_first": False,
            "cache": None,
            "kernels": str(engine.cache / "kernels"),
            "vendor": str(engine.vendor),
            "job": wishes_of(adapter_of(b_std=0.3)),
        }
    )
    assert outcome["first"] == "EXPORT_DISK_FULL"
    assert outcome["second"] == "exported"


def require_own_mounts() -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True, timeout=10)
    if probe.returncode != 0:
        pytest.skip("this machine gives no mount namespaces")


def starve(wishes: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [
            "unshare", "-rm", sys.executable, "-m", "tests.integration.exporter.export_once",
            json.dumps(wishes),
        ],
        check=False, capture_output=True, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def test_the_archive_of_an_export_is_whole(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "bundle.zip"
    job = Export(**wishes_of(adapter_of(b_std=0.3)), target=str(target))
    export(engine, job, lambda _step, _percent: None)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
