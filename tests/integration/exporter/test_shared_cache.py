"""Exporters and adapters that share a base: it is converted once, and encoded where it must be."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.child import Child
from exporter.domain.quantization import TensorType
from exporter.engine.base import cache_key
from exporter.engine.export import Engine
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.weights import SafetensorsFile
from exporter.pipe import Export
from tests.integration.exporter.making import ANVIL, export_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def kept_under(key: str, engine: Engine) -> Path:
    """The folder of one base in the cache that other tests use too."""
    return engine.cache / cache_key(key, llama_version=engine.llama_version)


class Counting:
    """A kernel that counts the numbers that it encodes and merges."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.elements = 0
        self.merged = 0

    def merge(self, *arguments: Any, **options: Any) -> NDArray[np.float32]:
        rows = self.kernel.merge(*arguments, **options)
        self.merged += rows.size
        return rows

    def encode(self, rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
        if kind.is_quantized:
            self.elements += rows.size
        return self.kernel.encode(rows, kind)


def test_what_no_adapter_touches_is_encoded_once(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    first = adapter_of(b_std=0.3, target_modules=["q_proj", "v_proj"], seed=1)
    second = adapter_of(b_std=0.3, target_modules=["q_proj", "v_proj"], seed=2)
    counts = []
    bundles = []
    for adapter in (first, second, first):
        counting = Counting(engine.kernel)
        here = replace(engine, kernel=counting)  # type: ignore[arg-type]
        export_bundle(here, adapter, tmp_path, "Q5_K_M", key="shared")
        counts.append(counting.elements)
        bundles.append((tmp_path / "bundle.zip").read_bytes())
    # Queries and values of four layers: 256 columns for 256 and 128 rows.
    assert counts[1] == counts[2] == 4 * 256 * (256 + 128)
    assert counts[0] > 4 * counts[1]
    assert bundles[0] == bundles[2] != bundles[1]


def test_one_pass_merges_for_the_file_and_for_its_proof(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Beyond once, only rows that are read back and looked at for a change."""
    adapter = adapter_of(b_std=0.3, target_modules=["up_proj", "down_proj"], seed=1)
    counting = Counting(engine.kernel)
    here = replace(engine, kernel=counting)  # type: ignore[arg-type]
    exported = export_bundle(here, adapter, tmp_path, "Q4_K_M", key="shared")
    assert exported.proof.proven
    with SafetensorsFile(adapter / "adapter_model.safetensors") as weights:
        spans = weights.tensors
        touched = sum(
            spans[name].shape[0] * spans[name.replace("lora_B", "lora_A")].shape[1]
            for name in spans
            if "lora_B" in name
        )
    assert touched <= counting.merged < 1.3 * touched


def test_a_kept_tensor_of_the_wrong_size_is_encoded_anew(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """What a file system lost in a crash is not taken over."""
    adapter = adapter_of(b_std=0.3, target_modules=["q_proj", "v_proj"], seed=1)
    export_bundle(engine, adapter, tmp_path, "Q6_K", key="shared")
    whole = (tmp_path / "bundle.zip").read_bytes()
    kept = list(kept_under("shared", engine).glob("encoded/*/Q6_K/*.bin"))
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    export_bundle(engine, adapter, tmp_path, "Q6_K", key="shared")
    assert (tmp_path / "bundle.zip").read_bytes() == whole


def test_what_killed_exporters_left_in_the_cache_goes(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Only what is old: another exporter may be writing at this moment."""
    adapter = adapter_of(b_std=0.3, target_modules=["q_proj", "v_proj"], seed=1)
    export_bundle(engine, adapter, tmp_path, "Q3_K_M", key="shared")
    (kept, *_) = kept_under("shared", engine).glob("encoded/*/Q3_K/*.bin")
    old, fresh = kept.with_name("old.partial"), kept.with_name("fresh.partial")
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    export_bundle(engine, adapter, tmp_path, "Q3_K_M", key="shared")
    assert not old.exists()
    assert fresh.exists()
    fresh.unlink()


async def test_two_exporters_that_share_a_cold_cache_convert_once(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    adapter = adapter_of(b_std=0.3)
    children = [
        await Child.start(
            log_path=tmp_path / f"{name}.log", cache=cache, vendor=engine.vendor, thread_count=1
        )
        for name in ("one", "two")
    ]
    jobs = []
    for number, child in enumerate(children):
        folder = tmp_path / f"work-{number}"
        folder.mkdir()
        job = Export(
            checkpoint=str(ANVIL),
            base_key="cold",
            base_model="tunesmith/anvil-3m",
            adapter=str(adapter),
            quantization="Q4_K_M",
            target=str(folder / "bundle.zip"),
            run="projects/local/runs/run-1",
        )
        jobs.append((child, job))
    await asyncio.gather(*(child.ready() for child in children))
    done = await asyncio.gather(*(child.export(job, lambda _: None) for child, job in jobs))
    await asyncio.gather(*(child.kill() for child in children))
    assert all(exported.proof.proven for exported in done)
    require_one_base(cache, [job.target for _, job in jobs])


def require_one_base(cache: Path, targets: list[str]) -> None:
    assert len(list(cache.glob("*/base.gguf"))) == 1
    assert not [*cache.rglob("*.partial"), *cache.glob("selftest-*/")]
    first, second = (Path(target).read_bytes() for target in targets)
    assert first == second
