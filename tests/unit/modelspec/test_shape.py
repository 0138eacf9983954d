"""Model configs as numbers: published sizes, hostile fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from modelspec.catalog import load_catalog
from modelspec.shape import ModelShape
from tests.unit.modelspec.published import PUBLISHED, config, shape

CATALOG = load_catalog(Path(__file__).parents[3] / "deploy/catalog")


@pytest.mark.parametrize("model_id", list(PUBLISHED))
def test_parameter_counts_are_the_published_ones(model_id: str) -> None:
    counted = ModelShape.from_config(PUBLISHED[model_id]).parameter_count()
    assert counted == CATALOG.models[model_id].parameter_count


def test_the_shipped_model_is_what_the_catalog_says() -> None:
    row = CATALOG.models["tunesmith/anvil-3m"]
    assert row.local_path is not None
    found = ModelShape.from_config(json.loads((row.local_path / "config.json").read_bytes()))
    assert found.parameter_count() == row.parameter_count
    assert found.context_tokens == row.context_tokens
    assert found.architecture.name == row.architecture


def test_of_experts_only_the_chosen_ones_are_active() -> None:
    mixtral = ModelShape.from_config(PUBLISHED["mistralai/Mixtral-8x7B-Instruct-v0.1"])
    assert 12.8e9 < mixtral.active_parameter_count() < 13e9


@pytest.mark.parametrize("name", ["SomeNewModel", "BertForMaskedLM", "NewForCausalLM"])
def test_an_unknown_architecture_is_named(name: str) -> None:
    """000-21, 004-09"""
    with pytest.raises(Fault) as caught:
        shape(name)
    assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED
    assert caught.value.message == f"Unsupported architecture: {name}"


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "256"},
        {"hidden_size": True},
        {"hidden_size": -1},
        {"hidden_size": 1 << 40},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 3},
        {"vocab_size": 2.5},
        {"tie_word_embeddings": "yes"},
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["LlamaForCausalLM", "Other"]},
    ],
)
def test_fields_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    """004-09"""
    with pytest.raises(Fault) as caught:
        ModelShape.from_config(config() | changes)
    assert caught.value.code is FaultCode.MODEL_CONFIG_INVALID


@pytest.mark.parametrize(
    "field",
    [
        "auto_map",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "trust_remote_code",
        "custom_pipelines",
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_fields_that_name_code_are_seen_and_not_followed(field: str, depth: int) -> None:
    """Attack 3: the shape is the same as without them, and they are reported."""
    planted: dict[str, Any] = {field: {"AutoModel": "evil--modeling.Evil"}}
    for _ in range(depth):
        planted = {"text_config": [planted]}
    found = ModelShape.from_config(config() | planted)
    assert found.code_fields == ((field,) if depth * 2 < 8 else ())
    assert found.parameter_count() == shape().parameter_count()


def test_modules_of_fused_and_expert_layers_have_their_own_names() -> None:
    assert set(shape("Phi3ForCausalLM").linear_modules()) == {
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    }
    mixtral = shape("MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=2)
    assert set(mixtral.linear_modules()) == {"q_proj", "k_proj", "v_proj", "o_proj"}
