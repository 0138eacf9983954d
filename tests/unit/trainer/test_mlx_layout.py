"""What the MLX rail takes on, and how its adapter is laid out for PEFT; no MLX is needed here."""

from typing import Any

import numpy as np
import pytest

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend, Method, Optimizer, Precision
from tests.support.training import a_plan, a_preference_plan
from trainer.domain.mlx import (
    as_mlx_reads,
    chosen_layers,
    require_same_layers,
    require_supported,
    to_mlx,
    to_peft,
)
from trainer.domain.plan import MultiRunPlan

FIVE_RUNS = MultiRunPlan(
    run_count=5,
    samples_per_run=20,
    in_order=False,
    drift_minimum_cosine=0.0,
    eval_maximum_regression=None,
)
LAYERS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "lm_head",
)


def a_pair(layer: str = "model.layers.0.mlp.up_proj", *, rank: int = 3) -> dict[str, np.ndarray]:
    return {
        f"{layer}.lora_a": np.arange(5 * rank, dtype=np.float32).reshape(5, rank),
        f"{layer}.lora_b": np.arange(rank * 7, dtype=np.float32).reshape(rank, 7),
    }


def test_a_pair_gets_pefts_names_and_the_shapes_of_torch() -> None:
    """A17: PEFT's A is (rank, in), its B (out, rank); mlx-lm multiplies from the other side."""
    pair = a_pair()
    named = to_peft(pair)
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    assert list(named) == [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
    a_RI, b_OR = named.values()
    assert (a_RI.shape, b_OR.shape) == ((3, 5), (7, 3))
    x_BI = np.ones((2, 5), dtype=np.float32)
    by_mlx = x_BI @ pair["model.layers.0.mlp.up_proj.lora_a"]
    by_mlx = by_mlx @ pair["model.layers.0.mlp.up_proj.lora_b"]
    np.testing.assert_array_equal(x_BI @ a_RI.T @ b_OR.T, by_mlx)
    assert all(array.flags.c_contiguous for array in named.values())


def test_there_and_back_is_the_same() -> None:
    pair = a_pair()
    again = to_mlx(to_peft(pair))
    assert again.keys() == pair.keys()
    for name, array in pair.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    "broken",
    [
        {"layer.lora_a": np.zeros((5, 3))},
        {"layer.lora_a": np.zeros((5, 3)), "layer.lora_b": np.zeros((2, 7))},
        {"layer.lora_a": np.zeros((4, 5, 3)), "layer.lora_b": np.zeros((3, 7))},
        {"layer.m": np.zeros(7)},
        {"layer.lora_a.weight": np.zeros((5, 3))},
        {"layer.lora_a": np.zeros((5, 3)), "other.lora_b": np.zeros((3, 7))},
    ],
)
def test_what_is_not_pairs_of_matrices_is_refused(broken: dict[str, np.ndarray]) -> None:
    with pytest.raises(Fault) as caught:
        to_peft(broken)
    assert caught.value.code is FaultCode.RUNTIME_TRAINING_FAILED


def test_a_name_that_peft_did_not_write_is_refused_on_the_way_back() -> None:
    with pytest.raises(Fault):
        to_mlx({"model.layers.0.lora_A.weight": np.zeros((3, 5))})


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (("all-linear",), LAYERS[1::-1]),
        (("q_proj", "all-linear"), LAYERS[1::-1]),
        (("q_proj",), LAYERS[:1]),
        (("model.layers.0.mlp.up_proj", "lm_head"), ("lm_head", LAYERS[1])),
    ],
)
def test_layers_are_chosen_by_pefts_rule(targets: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    assert chosen_layers(LAYERS, targets) == chosen


def test_a_target_that_only_ends_alike_is_not_meant() -> None:
    with pytest.raises(Fault) as caught:
        chosen_layers(LAYERS, ("proj",))
    assert caught.value.code is FaultCode.CONFIG_TARGET_UNKNOWN


@pytest.mark.parametrize("stored", [{}, {"a.q_proj.weight": (8, 4)}, {"a.q_proj": (4, 8)}])
def test_a_layer_that_mlx_holds_in_another_form_is_refused(
    stored: dict[str, tuple[int, ...]],
) -> None:
    """Its adapter would fit no other program."""
    with pytest.raises(Fault) as caught:
        require_same_layers({"a.q_proj": (4, 8)}, stored)
    assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED
    require_same_layers({"a.q_proj": (4, 8)}, {"a.q_proj.weight": (4, 8), "b": (1,)})


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Precision.FP8},
        {"adapter_use_dora": True},
        {"load_in_4bit": True},
        {"optimizer": Optimizer.PAGED_ADAMW_8BIT},
        {"torch_compile": True},
        {"multi_run": FIVE_RUNS},
    ],
)
def test_a_node_refuses_what_mlx_does_not_do(changes: dict[str, Any]) -> None:
    """002-38: the node does not rely on the validator."""
    with pytest.raises(Fault) as caught:
        require_supported(a_plan(backend=Backend.MLX, **changes))
    assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING


@pytest.mark.parametrize("method", [Method.ORPO, Method.DPO, Method.KTO, Method.SIMPO])
def test_a_node_refuses_preferences_on_mlx(method: Method) -> None:
    """002-38"""
    with pytest.raises(Fault) as caught:
        require_supported(a_preference_plan(method, backend=Backend.MLX))
    assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING
    assert method.upper() in caught.value.message


def test_plain_lora_is_what_mlx_does() -> None:
    require_supported(a_plan(backend=Backend.MLX, adapter_use_rslora=True, adapter_dropout=0.1))


def test_rotary_positions_are_told_where_mlx_looks_for_them() -> None:
    """A model saved by transformers 5 would be computed with mlx-lm's default positions."""
    llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    assert as_mlx_reads({"rope_parameters": llama3}) == {
        "rope_theta": 500000.0,
        "rope_scaling": {**llama3, "type": "llama3"},
    }
    by_layer = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert as_mlx_reads({"rope_parameters": by_layer}) == {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    }


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_parameters": None},
        {"rope_parameters": ["nonsense"]},
    ],
)
def test_a_config_that_mlx_reads_by_itself_is_left_alone(config: dict[str, Any]) -> None:
    assert as_mlx_reads(config) == {}
