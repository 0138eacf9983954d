"""Adapters beyond plain LoRA, against PEFT's own merge."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import VeloraConfig
from transformers import AutoModelForCausalLM

from exporter.domain.quantization import Quantization
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from lexicon.lora_config import HONOURED, IRRELEVANT, MUST_BE_DEFAULT, read_config
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


def test_every_field_of_peft_has_its_meaning_for_the_merge() -> None:
    """A field that a newer PEFT brings must be looked at before its adapters are exported."""
    plain = LoraConfig()
    fields = {field.name for field in dataclasses.fields(plain)}
    assert fields == {*HONOURED, *IRRELEVANT, *MUST_BE_DEFAULT}
    # What PEFT holds for an adapter without special wishes passes.
    assert read_config({**dataclasses.asdict(plain), "peft_type": "LORA"}).rank == plain.r


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param({"alpha_pattern": {"(q_proj|up_proj)$": 3}}, id="groups"),
        pytest.param(
            {
                "alpha_pattern": {
                    "^q_proj": 99,
                    r"layers\.[01]\..*": 40,
                    "^model.layers.2.mlp.up_proj": 3,
                    "o_proj": 2,
                }
            },
            id="sets-and-anchors",
        ),
        pytest.param(
            {
                "use_rslora": True,
                "rank_pattern": {"(?:q|k)_proj": 3, r".*\.[^01]\.mlp\..*": 12},
                "alpha_pattern": {r"layers\.\d\.self_attn\.\w+": 5},
            },
            id="ranks",
        ),
        pytest.param(
            {
                "target_modules": [],
                "target_parameters": ["q_proj.weight", "down_proj.weight"],
                "rank_pattern": {r"q_proj\.weight": 4, "q_proj": 6},
                "alpha_pattern": {"0.self_attn.q_proj.weight": 64, "down_proj": 1},
            },
            id="parameters",
        ),
        pytest.param({"init_lora_weights": "mica", "lora_dropout": 0.3}, id="mica"),
        pytest.param({"velora_config": VeloraConfig(num_groups=8)}, id="velora"),
    ],
)
def test_settings_are_honoured_as_peft_honours_them(
    lora: dict[str, Any], both: Callable[..., Any]
) -> None:
    ours, theirs = both(**lora)
    require_peft_s(ours, theirs, rounded_first="target_parameters" in lora)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_an_adapter_that_was_converted_from_a_changed_base_is_plain_lora(
    method: Literal["pissa", "olora"], engine: Engine, tmp_path: Path
) -> None:
    """`path_initial_model_for_weight_conversion` of peft: twice the rank, on the base as it is."""
    initial, adapter, merged = (tmp_path / part for part in ("initial", "adapter", "merged"))
    model = AutoModelForCausalLM.from_pretrained(ANVIL, dtype=torch.bfloat16)
    config = LoraConfig(init_lora_weights=method, target_modules=["q_proj", "up_proj"])
    changed = get_peft_model(model, config)
    # PEFT's own way: the initial factors are kept as if they were an ordinary adapter.
    config.init_lora_weights = True
    changed.save_pretrained(str(initial))
    config.init_lora_weights = method
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.02)
    changed.save_pretrained(str(adapter), path_initial_model_for_weight_conversion=str(initial))
    merge_classically(ANVIL, adapter, merged, dtype=torch.bfloat16)
    base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    classic, ours = tmp_path / "classic.gguf", tmp_path / "ours.gguf"
    convert_classically(merged, classic, vendor=engine.vendor, outtype="bf16")
    one_pass(engine, base, adapter, Quantization.BF16, ours)
    require_peft_s(matrices_of(ours), matrices_of(classic))
