"""Adapters beyond plain LoRA, against PEFT's own merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exporter.domain.quantization import Quantization
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from tests.integration.exporter.making import (
    ANVIL,
    convert_classically,
    matrices_of,
    merge_classically,
    require_peft_s,
)
from tests.integration.exporter.test_identity import one_pass

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Matrix = NDArray[np.float32]


@pytest.fixture
def both(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[dict[str, Matrix], dict[str, Matrix]]]:
    """Merged weights by tensor, ours and PEFT's, for an adapter with the given settings."""

    def make(**lora: Any) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
        adapter = adapter_of(b_std=0.3, **lora)
        merged = tmp_path / "merged"
        merge_classically(ANVIL, adapter, merged, dtype=torch.bfloat16)
        base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
        classic = tmp_path / "classic.gguf"
        convert_classically(merged, classic, vendor=engine.vendor, outtype="bf16")
        ours = tmp_path / "ours.gguf"
        one_pass(engine, base, adapter, Quantization.BF16, ours)
        return matrices_of(ours), matrices_of(classic)

    return make


def test_dora_follows_its_magnitudes(both: Callable[..., Any]) -> None:
    """Liu et al. 2024; torch takes lengths and quotients in float32."""
    ours, theirs = both(use_dora=True)
    require_peft_s(ours, theirs)


def test_modules_trained_whole_are_taken_over(both: Callable[..., Any]) -> None:
    ours, theirs = both(target_modules=["q_proj", "v_proj"], modules_to_save=["up_proj"])
    require_peft_s(ours, theirs)


@pytest.mark.parametrize("rank", [128, 256])
def test_a_large_rank_is_merged(both: Callable[..., Any], rank: int) -> None:
    ours, theirs = both(r=rank)
    require_peft_s(ours, theirs)


def test_some_layers_only(both: Callable[..., Any]) -> None:
    ours, theirs = both(
        target_modules=["o_proj", "gate_proj"],
        layers_to_transform=[1, 3],
        alpha_pattern={"o_proj": 3},
        r=5,
    )
    require_peft_s(ours, theirs)
