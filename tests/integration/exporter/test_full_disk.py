"""A disk that is really full: cached models make room for an export before it is refused."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.engine.export import Engine
from lexicon.faults import Fault, FaultCode
from objects.cache import RESERVE_BYTES, Evicted
from tests.integration.exporter.making import export_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK_BYTES = 192 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, as small as it says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("only an administrator mounts file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def crowded(
    disk: Path, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> tuple[Engine, Path]:
    """An exporter on that disk with its base converted, and no room for one more bundle.

    Its cache is its own: what other tests have left in the shared one may be larger than the disk.
    """
    owner = replace(engine, cache=disk / "gguf", cache_bytes=DISK_BYTES)
    export_bundle(owner, adapter_of(b_std=0.3), tmp_path, "F16")
    for number in (1, 2):
        entry = disk / "gguf" / f"{number:032x}"
        entry.mkdir()
        with (entry / "base.gguf").open("wb") as file:
            file.write(bytes(8 * MIB))
        os.utime(entry, (number, number))
    filler = disk / "other"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - RESERVE_BYTES - MIB))
    (disk / "work").mkdir()
    return owner, disk / "work"


def test_what_was_not_used_for_longest_makes_room(
    crowded: tuple[Engine, Path], adapter_of: Callable[..., Path]
) -> None:
    """One old base is enough, so that the newer one stays."""
    engine, work = crowded
    gone: list[Evicted] = []
    exported = export_bundle(engine, adapter_of(b_std=0.3), work, "F16", on_evicted=gone.append)
    assert exported.proof.proven
    assert [evicted.name for evicted in gone] == [f"gguf/{1:032x}"]


def test_a_disk_that_others_have_filled_refuses_with_its_code(
    crowded: tuple[Engine, Path], adapter_of: Callable[..., Path]
) -> None:
    """Everything is in use: nothing is deleted, nothing half-written is left."""
    engine, work = crowded
    entries = [path for path in engine.cache.iterdir() if len(path.name) == 32]
    with ExitStack() as held:
        for entry in entries:
            held.enter_context(engine.models.using(entry))
        with pytest.raises(Fault) as caught:
            export_bundle(engine, adapter_of(b_std=0.3), work, "F16")
    assert caught.value.code is FaultCode.EXPORT_DISK_FULL
    assert all(entry.exists() for entry in entries)
    assert not list(work.iterdir())
