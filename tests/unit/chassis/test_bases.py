"""Base models on a node's disk, from the store and from a hub: one behaviour for every worker."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chassis.bases import Bases
from lexicon.faults import Fault, FaultCode
from objects import cache
from tests.support.modelhub_server import ModelHubServer, Repo
from tests.support.work import ObjectServer
from tunesmith.api.work.v1 import work_pb2

CONFIG, WEIGHTS = b'{"model_type": "llama"}', bytes(range(256)) * 64
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
MODEL = "someone/llama"


@dataclass(slots=True)
class Session:
    """A lease of which the reports alone matter."""

    told: list[Any] = field(default_factory=list)

    def report(self, report: Any) -> None:
        self.told.append(report.activity)


async def never(_file: object, _url: str) -> str:
    raise AssertionError("no URL of these tests ends")


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a base comes from, and the node that fetches it."""

    base: work_pb2.BaseModelInput
    bases: Bases
    lose: Callable[[], None]
    lost: FaultCode

    async def fetch(self, session: Session | None = None, *, is_doubted: bool = False) -> Path:
        given: Any = session or Session()
        commit = await self.bases.commit_of(self.base)
        return await self.bases.fetch(given, self.base, never, commit=commit, is_doubted=is_doubted)


@pytest.fixture
def objects() -> Iterator[ObjectServer]:
    server = ObjectServer()
    yield server
    server.close()


@pytest.fixture(params=["store", "hub"])
def place(request: pytest.FixtureRequest, objects: ObjectServer, tmp_path: Path) -> Iterator[Place]:
    base = work_pb2.BaseModelInput(base_model=MODEL, model_id=MODEL)
    with ModelHubServer(repos={MODEL: Repo(files=dict(FILES))}) as hub:
        lose, lost = lambda: hub.fail(MODEL, 404), FaultCode.DEP_MODEL_LOAD_FAILED
        if request.param == "store":
            lose, lost = objects.files.clear, FaultCode.STORAGE_OBJECT_NOT_FOUND
            for name, content in FILES.items():
                (tmp_path / name).write_bytes(content)
                base.files.append(objects.add(tmp_path / name, name))
        bases = Bases(tmp_path / "cache", bound_bytes=0, hub_url=hub.url, hub_token=None)
        yield Place(base=base, bases=bases, lose=lose, lost=lost)
        bases.let_go()


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


async def test_a_base_is_fetched_once_and_its_lease_hears_of_it(place: Place) -> None:
    first, again = Session(), Session()
    folder = await place.fetch(first)
    assert content(folder) == FILES
    assert {told.text for told in first.told} == {"downloading the base model"}
    assert await place.fetch(again) == folder
    assert not [told for told in again.told if told.percent > 0]


async def test_a_base_that_is_doubted_is_as_it_was_given_afterwards(place: Place) -> None:
    """Of the same length, so that its digest alone tells."""
    folder = await place.fetch()
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.write_bytes(WEIGHTS[::-1])
    assert content(await place.fetch()) != FILES
    assert content(await place.fetch(is_doubted=True)) == FILES


async def test_a_base_that_is_gone_is_told_by_its_code(place: Place) -> None:
    place.lose()
    with pytest.raises(Fault) as caught:
        await place.fetch()
    assert caught.value.code is place.lost


async def test_a_base_under_work_is_held_until_it_is_let_go(place: Place, tmp_path: Path) -> None:
    folder = await place.fetch()
    full = cache.FolderCache(tmp_path / "cache", bound_bytes=1)
    assert full.make_room(1) == []
    assert folder.exists()
    place.bases.let_go()
    assert len(full.make_room(1)) == 1
    assert not folder.exists()


async def test_what_comes_from_the_store_is_what_was_promised(
    objects: ObjectServer, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    file = objects.add(tmp_path / "model.safetensors", "model.safetensors")
    objects.files["/in/model.safetensors"] = WEIGHTS[::-1]
    bases = Bases(tmp_path / "cache", bound_bytes=0, hub_url="http://127.0.0.1:9", hub_token=None)
    session: Any = Session()
    with pytest.raises(Fault) as caught:
        await bases.fetch(session, work_pb2.BaseModelInput(files=[file]), never)
    assert caught.value.code is FaultCode.STORAGE_CHECKSUM_MISMATCH
