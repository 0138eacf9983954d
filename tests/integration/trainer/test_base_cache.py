"""The base on the node's disk: fetched once, named by its very bytes, not read through again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.inputs import InputUrls
from chassis.leasing import LeaseSession
from deploy.models.anvil.grammar import HOME
from tests.support.modelhub_server import ModelHubServer, Repo
from tests.support.work import ObjectServer
from trainer.config import Config
from trainer.domain.plan import Base
from trainer.worker import Trainer
from tunesmith.api.work.v1 import work_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WEIGHTS = HOME / "weights"
IO_COUNTERS = Path("/proc/self/io")


def a_trainer(
    folder: Path, *, hub_url: str = "http://127.0.0.1:9", cache_bytes: int = 0
) -> Trainer:
    return Trainer(
        Config(
            scheduler_addr="127.0.0.1:9",
            node_token="t",
            node_name="n-1",
            work_dir=folder / "work",
            model_cache=folder / "cache",
            model_hub_url=hub_url,
            model_cache_bytes=cache_bytes,
        )
    )


async def fetched(trainer: Trainer, base: work_pb2.BaseModelInput) -> Base:
    """The base as a lease gets it; its URLs live long enough, and nobody hears of the progress."""
    lease = work_pb2.Lease(train=work_pb2.TrainTask(base=base))
    session = LeaseSession(None, lease, node="nodes/n-1")  # type: ignore[arg-type]
    return await trainer._fetch_base(session, base, InputUrls(session).renewed)


@pytest.fixture
def objects() -> Iterator[ObjectServer]:
    server = ObjectServer()
    yield server
    server.close()


def bytes_read() -> int:
    lines = IO_COUNTERS.read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


@pytest.mark.skipif(not IO_COUNTERS.exists(), reason="reads are counted on Linux")
async def test_a_second_run_neither_fetches_nor_hashes_the_weights(
    objects: ObjectServer, tmp_path: Path
) -> None:
    """001-24: gigabytes would be read before every run."""
    base = work_pb2.BaseModelInput(
        base_model="tunesmith/anvil-3m",
        model_id="tunesmith/anvil-3m",
        files=[objects.add(path, path.name) for path in sorted(WEIGHTS.iterdir())],
    )
    size_bytes = sum(file.size_bytes for file in base.files)
    trainer = a_trainer(tmp_path)
    first = await fetched(trainer, base)
    objects.files.clear()
    before = bytes_read()
    again = await fetched(trainer, base)
    assert bytes_read() - before < size_bytes / 20
    assert again == first


async def test_another_file_is_another_base(objects: ObjectServer, tmp_path: Path) -> None:
    """A warm base is used for the same bytes alone."""
    files = [objects.add(path, path.name) for path in sorted(WEIGHTS.iterdir())]
    bases = [work_pb2.BaseModelInput(base_model="b", model_id="b", files=files)]
    changed = tmp_path / "config.json"
    changed.write_text((WEIGHTS / "config.json").read_text() + "\n")
    others = [file for file in files if file.path != "config.json"]
    others.append(objects.add(changed, "config.json"))
    bases.append(work_pb2.BaseModelInput(base_model="b", model_id="b", files=others))
    trainer = a_trainer(tmp_path)
    objects.files["/in/config.json"] = (WEIGHTS / "config.json").read_bytes()
    first = await fetched(trainer, bases[0])
    objects.files["/in/config.json"] = changed.read_bytes()
    assert (await fetched(trainer, bases[1])).digest != first.digest


async def test_the_longest_unused_base_goes_when_the_bound_is_reached(tmp_path: Path) -> None:
    """Of the hub and of the store alike; the base under work stays, whatever that costs."""
    repos = {f"someone/{name}": Repo.of_folder(WEIGHTS) for name in ("old", "new", "third")}
    size_bytes = sum(path.stat().st_size for path in WEIGHTS.iterdir())
    with ModelHubServer(repos=repos) as hub:
        trainer = a_trainer(tmp_path, hub_url=hub.url, cache_bytes=5 * size_bytes // 2)

        async def fetch(name: str) -> Path:
            base = work_pb2.BaseModelInput(base_model=name, model_id=f"someone/{name}")
            return Path((await fetched(trainer, base)).folder)

        old, new = await fetch("old"), await fetch("new")
        third = await fetch("third")
        assert old.exists()
        assert new.exists()
        trainer._bases.let_go()
        await fetch("old")
        trainer._bases.let_go()
        await fetch("third")
        assert (old.exists(), new.exists(), third.exists()) == (True, False, True)
        trainer._bases.let_go()


async def test_a_branch_that_moved_is_another_base(tmp_path: Path) -> None:
    """The name of a branch says nothing of the bytes: the commit does."""
    repo = Repo.of_folder(WEIGHTS)
    base = work_pb2.BaseModelInput(base_model="someone/llama", model_id="someone/llama")
    with ModelHubServer(repos={"someone/llama": repo}) as hub:
        trainer = a_trainer(tmp_path, hub_url=hub.url)
        first = await fetched(trainer, base)
        moved = Repo(files={**repo.files, "generation_config.json": b"{}"})
        hub.repos["someone/llama"] = moved
        second = await fetched(trainer, base)
    assert first.digest == f"someone/llama@{repo.sha}"
    assert second.digest == f"someone/llama@{moved.sha}"
    assert repo.sha != moved.sha
