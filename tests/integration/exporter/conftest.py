"""What the exporter's integration tests share: the converted base and adapters made once."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import llama_build
from exporter.config import Config
from exporter.engine.export import Engine
from exporter.engine.kernel.kernel import Kernel
from exporter.worker import Exporter
from tests.integration.exporter.making import ANVIL, make_adapter, write_reference
from tests.support.work import ObjectServer


@pytest.fixture(scope="session")
def vendor() -> Path:
    """llama.cpp's converter, where setup keeps it."""
    return llama_build.vendor_folder()


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a session share, so that the base is converted once."""
    return tmp_path_factory.mktemp("model-cache")


@pytest.fixture(scope="session")
def engine(vendor: Path, model_cache: Path) -> Engine:
    return Engine(
        cache=model_cache / "gguf",
        vendor=vendor,
        thread_count=2,
        kernel=Kernel.prepare(model_cache / "gguf" / "kernels"),
        llama_version="test",
    )


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an adapter of the demo's model with its proof reference; equal wishes share one."""
    made: dict[str, Path] = {}

    def make(**wishes: object) -> Path:
        key = repr(sorted(wishes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("adapter")
            make_adapter(ANVIL, folder, **wishes)  # type: ignore[arg-type]
            write_reference(ANVIL, folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def objects() -> Iterator[ObjectServer]:
    server = ObjectServer()
    yield server
    server.close()


@pytest.fixture
def exporter_cache(model_cache: Path) -> Path:
    """The cache of the exporter under test; a test that damages one gives its own."""
    return model_cache


@pytest.fixture
async def exporter(tmp_path: Path, exporter_cache: Path, vendor: Path) -> AsyncIterator[Exporter]:
    made = Exporter(
        Config(
            scheduler_addr="unused",
            node_token="unused",
            node_name="exporter-1",
            work_dir=tmp_path / "work",
            model_cache=exporter_cache,
            llama_vendor=vendor,
        )
    )
    await made.ready()
    yield made
    await made.close()
