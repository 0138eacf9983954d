"""Adapters beyond plain LoRA, against PEFT's own merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.domain.quantization import Quantization
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from exporter.engine.weights import GgufFile
from tests.integration.exporter.making import ANVIL, convert_classically, merge_classically
from tests.integration.exporter.test_identity import one_pass

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# One unit in the last place of bfloat16, relative to the number.
BF16_STEP = 2.0**-7


@pytest.fixture
def both(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Merged weights by tensor, ours and PEFT's, for an adapter with the given settings."""

    def make(**lora: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        adapter = adapter_of(b_std=0.3, **lora)
        merged = tmp_path / "merged"
        merge_classically(ANVIL, adapter, merged, dtype=torch.bfloat16)
        base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
        classic = tmp_path / "classic.gguf"
        convert_classically(merged, classic, vendor=engine.vendor, outtype="bf16")
        ours = tmp_path / "ours.gguf"
        one_pass(engine, base, adapter, Quantization.BF16, ours)
        return _matrices(ours), _matrices(classic)

    return make


def test_dora_follows_its_magnitudes(both: Callable[..., Any]) -> None:
    """Liu et al. 2024: lengths are summed in another order than torch's, hence one last bit."""
    ours, theirs = both(use_dora=True)
    different = total = 0
    for name, wanted in theirs.items():
        found = ours[name]
        assert np.all(np.abs(found - wanted) <= BF16_STEP * np.abs(wanted) + 1e-30), name
        different += int((found != wanted).sum())
        total += wanted.size
    assert different / total < 1e-4


def test_modules_trained_whole_are_taken_over(both: Callable[..., Any]) -> None:
    ours, theirs = both(target_modules=["q_proj", "v_proj"], modules_to_save=["up_proj"])
    assert _differing(ours, theirs) == []


def test_an_adapted_embedding_is_merged(both: Callable[..., Any]) -> None:
    """The model's embedding is also its output; both see the change, as after PEFT's merge."""
    ours, theirs = both(target_modules=["embed_tokens", "q_proj"])
    assert _differing(ours, theirs) == []


def test_a_large_rank_sums_as_torch_does(both: Callable[..., Any]) -> None:
    """Above 192 torch's BLAS takes the rank in parts that depend on the processor."""
    ours, theirs = both(r=128)
    assert _differing(ours, theirs) == []


def test_some_layers_only(both: Callable[..., Any]) -> None:
    ours, theirs = both(
        target_modules=["o_proj", "gate_proj"],
        layers_to_transform=[1, 3],
        alpha_pattern={"o_proj": 3},
        r=5,
    )
    assert _differing(ours, theirs) == []


def _matrices(path: Path) -> dict[str, np.ndarray]:
    with GgufFile(path) as file:
        return {
            info.name: (np.array(file.bits(info)).astype(np.uint32) << 16).view(np.float32)
            for info in file.header.tensors
            if len(info.dimensions) > 1
        }


def _differing(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    return [name for name, wanted in theirs.items() if not np.array_equal(ours[name], wanted)]
