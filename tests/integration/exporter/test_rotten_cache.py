"""A cache that rotted, or that an erring machine filled, spoils no export; a full one yields."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.engine.base import cache_key
from exporter.engine.export import Engine
from exporter.worker import Exporter
from lexicon.faults import Fault, FaultCode
from objects.cache import Evicted, folder_bytes
from tests.integration.exporter.making import ANVIL, export_bundle
from tests.integration.exporter.test_damaged_adapters import changed, config_cut, reference_cut
from tests.integration.exporter.test_gates import Damaged
from tests.integration.exporter.test_worker import a_lease, work_off
from tests.support.own_caches import damage_conversions, damage_weights
from tests.support.work import FakeScheduler, ObjectServer
from tunesmith.api.work.v1 import work_pb2

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def models(model_cache: Path, tmp_path: Path, engine: Engine, anvil_adapter: Path) -> Path:
    """A copy of a cache that holds a converted base, to damage."""
    export_bundle(engine, anvil_adapter, tmp_path)
    return shutil.copytree(model_cache, tmp_path / "models")


@pytest.fixture
def anvil_adapter(adapter_of: Callable[..., Path]) -> Path:
    """An adapter that leaves most of its base untouched."""
    return adapter_of(b_std=0.3, target_modules=["q_proj", "v_proj"], seed=1)


@pytest.fixture
def exporter_cache(models: Path) -> Path:
    return models


async def outcome(exporter: Exporter, objects: ObjectServer, lease: work_pb2.Lease) -> str:
    """The code with which a lease fails, "" for a bundle."""
    scheduler = FakeScheduler(objects=objects)
    scheduler.queue.append(lease)
    await work_off(exporter, scheduler)
    return scheduler.failed[0].fault.code if scheduler.failed else ""


def stored_weights(models: Path) -> bytes:
    """The base's weights as the node keeps them."""
    (path,) = models.glob("store/*/model.safetensors")
    return path.read_bytes()


async def test_a_base_that_rotted_is_fetched_and_converted_anew(
    exporter: Exporter, objects: ObjectServer, models: Path, anvil_adapter: Path
) -> None:
    """001-40: neither the files nor the conversion of a base may cost a run its GGUF."""
    assert await outcome(exporter, objects, a_lease(objects, anvil_adapter)) == ""
    assert damage_conversions(models)
    damage_weights(models)
    assert stored_weights(models) != (ANVIL / "model.safetensors").read_bytes()
    lease = a_lease(objects, anvil_adapter, lease_id="lease-2")
    assert await outcome(exporter, objects, lease) == ""
    assert stored_weights(models) == (ANVIL / "model.safetensors").read_bytes()


def made_at(models: Path) -> list[int]:
    """When the base's files were compared with their digests, and when they were converted."""
    marks = [*models.glob("store/*/.complete"), *models.glob("gguf/*/base.gguf")]
    return [path.stat().st_mtime_ns for path in sorted(marks)]


def not_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """One number of one factor is none."""
    if "layers.2.self_attn.q_proj.lora_B" in name:
        tensor[3, 3] = float("nan")
    return tensor


@pytest.mark.parametrize("damage", [config_cut, changed(not_finite), reference_cut])
async def test_a_damaged_adapter_costs_its_base_nothing(
    damage: Callable[[Path], None],
    exporter: Exporter,
    objects: ObjectServer,
    models: Path,
    anvil_adapter: Path,
    tmp_path: Path,
) -> None:
    """It is refused before the base is looked at, after that, and after the merge."""
    assert await outcome(exporter, objects, a_lease(objects, anvil_adapter)) == ""
    before = made_at(models)
    adapter = shutil.copytree(anvil_adapter, tmp_path / "damaged")
    damage(adapter)
    lease = a_lease(objects, adapter, lease_id="lease-2")
    assert await outcome(exporter, objects, lease) == "MODEL_WEIGHTS_INVALID"
    assert made_at(models) == before


def cut_short(models: Path, name: str) -> None:
    """As a disk does that lost the end of a file."""
    for path in models.glob(f"gguf/*/{name}"):
        path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("name", ["base.gguf", "placements.json", "tokenizer.json"])
async def test_a_conversion_that_cannot_be_read_is_made_anew(
    name: str, exporter: Exporter, objects: ObjectServer, models: Path, anvil_adapter: Path
) -> None:
    assert await outcome(exporter, objects, a_lease(objects, anvil_adapter)) == ""
    cut_short(models, name)
    lease = a_lease(objects, anvil_adapter, lease_id="lease-2")
    assert await outcome(exporter, objects, lease) == ""


async def test_the_verdict_stands_when_the_base_cannot_be_checked(
    exporter: Exporter, objects: ObjectServer, models: Path, anvil_adapter: Path
) -> None:
    """The store forgets the base meanwhile: what is told is what is wrong with the export."""
    assert await outcome(exporter, objects, a_lease(objects, anvil_adapter)) == ""
    assert damage_conversions(models)
    damage_weights(models)
    lease = a_lease(objects, anvil_adapter, lease_id="lease-2")
    del objects.files["/in/model.safetensors"]
    assert await outcome(exporter, objects, lease) == "EXPORT_WRONG_BASE"


async def test_a_base_that_is_converted_is_not_fetched_again(
    exporter: Exporter, objects: ObjectServer, models: Path, anvil_adapter: Path
) -> None:
    """Its files may go from the cache, and a store that has lost them harms no export."""
    assert await outcome(exporter, objects, a_lease(objects, anvil_adapter)) == ""
    shutil.rmtree(models / "store")
    lease = a_lease(objects, anvil_adapter, lease_id="lease-2")
    del objects.files["/in/model.safetensors"]
    assert await outcome(exporter, objects, lease) == ""
    assert not (models / "store").exists()


def test_a_broken_encoder_leaves_nothing_to_later_exports(
    engine: Engine, anvil_adapter: Path, tmp_path: Path
) -> None:
    """What was encoded is kept after its proof only, and given up with the proof's failure."""
    export_bundle(engine, anvil_adapter, tmp_path, "Q4_K_M", key="kept")
    sound = (tmp_path / "bundle.zip").read_bytes()
    broken = replace(engine, kernel=Damaged(engine.kernel))  # type: ignore[arg-type]
    for mix in ("Q4_K_M", "Q2_K"):
        with pytest.raises(Fault) as caught:
            export_bundle(broken, anvil_adapter, tmp_path, mix, key="kept")
        assert caught.value.code is FaultCode.EXPORT_QUANTIZATION_BROKEN
    key = cache_key("kept", llama_version=engine.llama_version)
    assert not list((engine.cache / key).rglob("*.bin"))
    for _ in range(2):
        export_bundle(engine, anvil_adapter, tmp_path, "Q4_K_M", key="kept")
        assert (tmp_path / "bundle.zip").read_bytes() == sound
        assert list((engine.cache / key).rglob("*.bin"))


def test_a_rotten_tensor_is_encoded_anew(
    engine: Engine, anvil_adapter: Path, tmp_path: Path
) -> None:
    """One bit of one row, where the spot check of the finished file would hardly look."""
    export_bundle(engine, anvil_adapter, tmp_path, "Q4_K_M", key="kept")
    sound = (tmp_path / "bundle.zip").read_bytes()
    key = cache_key("kept", llama_version=engine.llama_version)
    kept = list((engine.cache / key).rglob("*.bin"))
    assert kept
    for path in kept:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0x10
        path.write_bytes(content)
    export_bundle(engine, anvil_adapter, tmp_path, "Q4_K_M", key="kept")
    assert (tmp_path / "bundle.zip").read_bytes() == sound


def test_a_full_cache_makes_room_for_the_base_at_hand(
    engine: Engine, models: Path, anvil_adapter: Path, tmp_path: Path
) -> None:
    """The conversions of other bases go, the longest unused first; the one in use stays."""
    bounded = replace(engine, cache=models / "gguf", cache_bytes=1)
    old = models / "gguf" / f"{7:032x}"
    old.mkdir()
    (old / "base.gguf").write_bytes(bytes(1 << 20))
    gone: list[Evicted] = []
    job_folder = tmp_path / "bounded"
    job_folder.mkdir()
    export_bundle(bounded, anvil_adapter, job_folder, key="bounded", on_evicted=gone.append)
    key = cache_key("bounded", llama_version=engine.llama_version)
    assert f"gguf/{old.name}" in {evicted.name for evicted in gone}
    assert f"gguf/{key}" not in {evicted.name for evicted in gone}
    # Names of another kind are other tests'; they are no entries.
    assert [path.name for path in models.glob("gguf/" + 32 * "[0-9a-f]")] == [key]
    assert folder_bytes(models / "gguf" / key) > 0
    assert (models / "gguf" / "kernels").is_dir()
