"""Room in the cache of models: the longest unused goes first, what is in use stays."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from objects.cache import DESK_PLACES, GRAVES_NAME, Evicted, FolderCache, folder_bytes
from tests.support import ptrace
from tests.support.fresh import in_fresh_process

KIB = 1 << 10
OTHER_VOLUME = Path("/proc")
USES = """
import sys
from pathlib import Path
from objects.cache import FolderCache
with FolderCache(Path(sys.argv[1])).using(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def name_of(number: int, place: str = "gguf") -> str:
    return f"{place}/{number:032x}"


def an_entry(cache: FolderCache, folder: Path, *, last_use: float, size_bytes: int = KIB) -> Path:
    """An entry of two files, one of them in a folder of its own."""
    (folder / "encoded").mkdir(parents=True)
    (folder / "model").write_bytes(bytes(size_bytes // 2))
    (folder / "encoded" / "part").write_bytes(bytes(size_bytes - size_bytes // 2))
    with cache.using(folder):
        pass
    for path in (cache._lock_path(folder), folder):
        os.utime(path, (last_use, last_use))
    return folder


@pytest.fixture
def bounded(tmp_path: Path) -> Callable[[int], FolderCache]:
    return lambda bound_bytes: FolderCache(tmp_path, bound_bytes=bound_bytes)


def test_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, bounded: Callable[[int], FolderCache]
) -> None:
    """Wherever it lies: files of the store, a model of the hub, a conversion."""
    cache = bounded(4 * KIB)
    names = ["models--someone--llama", name_of(1, "store"), name_of(2), name_of(3)]
    for number, name in enumerate(names):
        an_entry(cache, tmp_path / name, last_use=1000 + number)
    assert cache.make_room(0) == []
    with cache.using(tmp_path / names[0]):
        pass
    evicted = cache.make_room(2 * KIB)
    assert evicted == [Evicted(name=name, size_bytes=KIB) for name in names[1:3]]
    assert [(tmp_path / name).exists() for name in names] == [True, False, False, True]


def test_what_is_in_use_stays_whatever_is_wanted(
    tmp_path: Path, bounded: Callable[[int], FolderCache]
) -> None:
    cache = bounded(KIB)
    used = an_entry(cache, tmp_path / name_of(1), last_use=1)
    idle = an_entry(cache, tmp_path / name_of(2), last_use=2)
    with ExitStack() as held:
        held.enter_context(cache.using(used))
        held.enter_context(cache.using(used))
        assert [evicted.name for evicted in cache.make_room(1 << 60)] == [name_of(2)]
        assert not cache.forget(used)
        assert used.exists()
        with (used / "model").open("rb") as file:
            assert cache.forget(used, in_use_too=True)
            assert len(file.read()) == KIB // 2
    assert not idle.exists()
    an_entry(cache, used, last_use=1)
    assert cache.forget(used)
    assert not cache.forget(used)


def test_what_another_process_uses_stays_until_it_is_killed(
    tmp_path: Path, bounded: Callable[[int], FolderCache]
) -> None:
    cache = bounded(KIB)
    used = an_entry(cache, tmp_path / name_of(1), last_use=1, size_bytes=2 * KIB)
    command = [sys.executable, "-c", USES, str(tmp_path), str(used)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert cache.make_room(KIB) == []
        other.kill()
    assert [evicted.name for evicted in cache.make_room(KIB)] == [name_of(1)]


def test_only_entries_go(tmp_path: Path, bounded: Callable[[int], FolderCache]) -> None:
    """Kernels, listings, locks, and a conversion under way are none."""
    cache = bounded(1)
    others = ["gguf/kernels", f"{name_of(1)}.partial", "gguf/selftest-x", "listings", "stored/a"]
    for name in others:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(bytes(KIB))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name_of(2)).symlink_to(tmp_path / "elsewhere")
    assert cache.make_room(KIB) == []
    assert all((tmp_path / name / "file").exists() for name in others)


def test_what_was_just_used_is_taken_to_be_in_use_where_nobody_holds_it(tmp_path: Path) -> None:
    """The validator's entries: read within a check, which no lock spans."""
    cache = FolderCache(tmp_path, bound_bytes=1, places=DESK_PLACES, idle_seconds=3600)
    old = an_entry(cache, tmp_path / name_of(1, "stored"), last_use=1)
    other = an_entry(cache, tmp_path / "hub" / "models--a--b", last_use=2)
    fresh = an_entry(cache, tmp_path / name_of(2, "stored"), last_use=time.time())
    nodes = an_entry(cache, tmp_path / name_of(3, "store"), last_use=1)
    names = [evicted.name for evicted in cache.make_room(KIB)]
    assert names == [path.relative_to(tmp_path).as_posix() for path in (old, other)]
    assert fresh.exists()
    assert nodes.exists()


def test_without_a_bound_half_of_the_volume_is_it(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    kept = an_entry(cache, tmp_path / name_of(1), last_use=1)
    half = shutil.disk_usage(tmp_path).total // 2
    assert cache.make_room(0) == []
    assert kept.exists()
    assert [evicted.name for evicted in cache.make_room(half)] == [name_of(1)]


def test_a_disk_on_which_nothing_would_help_costs_no_entry(
    tmp_path: Path, bounded: Callable[[int], FolderCache]
) -> None:
    cache = bounded(1 << 62)
    kept = an_entry(cache, tmp_path / name_of(1), last_use=1)
    work = tmp_path / "work"
    work.mkdir()
    assert cache.make_room(2 * shutil.disk_usage(tmp_path).free, at=work) == []
    assert kept.exists()


@pytest.mark.skipif(not OTHER_VOLUME.is_dir(), reason="another volume is needed")
def test_a_file_for_another_volume_costs_no_entry(
    tmp_path: Path, bounded: Callable[[int], FolderCache]
) -> None:
    cache = bounded(1 << 62)
    kept = an_entry(cache, tmp_path / name_of(1), last_use=1)
    assert cache.make_room(1 << 60, at=OTHER_VOLUME) == []
    assert kept.exists()


@pytest.mark.skipif(not ptrace.CAN_FAIL_CALLS, reason="system calls are counted on Linux")
def test_an_eviction_that_is_killed_leaves_an_entry_whole_or_none(tmp_path: Path) -> None:
    """At every system call; what is left of it goes with the next eviction."""
    assert in_fresh_process(_evict_and_kill, tmp_path) == {True, False}
    FolderCache(tmp_path, bound_bytes=1).make_room(0)
    assert not list((tmp_path / GRAVES_NAME).iterdir())


def _evict_and_kill(root: Path) -> set[bool]:
    """Whether the entry was found whole, after each of the kills."""
    cache, folder = FolderCache(root, bound_bytes=1), root / name_of(1)
    boundary = 0
    was_killed = True
    seen = set()
    while was_killed:
        boundary += 1
        if not folder.exists():
            an_entry(cache, folder, last_use=1)
        was_killed = ptrace.kill_at_boundary(lambda: _forget(cache, folder), boundary)
        seen.add(folder.exists())
        assert not folder.exists() or folder_bytes(folder) == KIB
        # Nobody holds it any more, so that it is found or made anew, and deleted again.
        with cache.using(folder):
            pass
    return seen


def _forget(cache: FolderCache, folder: Path) -> None:
    assert cache.forget(folder)
