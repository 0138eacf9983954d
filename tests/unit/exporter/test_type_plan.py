"""The type plan of a mix. The comparison with llama.cpp itself is an integration test."""

import pytest

from exporter.domain.quantization import Quantization, TensorType, parse_quantization
from exporter.domain.type_plan import (
    ModelFacts,
    TensorShape,
    file_order,
    may_quantize,
    plan_types,
    role_of,
)
from lexicon.faults import Fault, FaultCode

FACTS = ModelFacts(
    architecture="llama", layer_count=16, head_count=32, head_count_kv=8, expert_count=0
)


def tensor(name: str, columns: int = 256, rows: int = 4) -> TensorShape:
    return TensorShape(name=name, dimensions=(columns, rows), stored_type=TensorType.BF16)


def plan(mix: Quantization, *tensors: TensorShape, facts: ModelFacts = FACTS) -> list[TensorType]:
    return plan_types(tensors, facts, mix)


def test_q4_k_m_gives_sensitive_layers_six_bits() -> None:
    """The first and last eighth of the layers and every third between."""
    downs = [tensor(f"blk.{layer}.ffn_down.weight") for layer in range(16)]
    types = plan(Quantization.Q4_K_M, *downs)
    raised = [layer for layer, kind in enumerate(types) if kind is TensorType.Q6_K]
    assert raised == [0, 1, 4, 7, 10, 13, 14, 15]


def test_a_tied_embedding_is_stored_like_an_output() -> None:
    embedding = tensor("token_embd.weight")
    assert plan(Quantization.Q4_K_M, embedding) == [TensorType.Q6_K]
    untied = plan(Quantization.Q4_K_M, tensor("output.weight"), embedding)
    assert untied == [TensorType.Q6_K, TensorType.Q4_K]


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [(256, TensorType.Q4_K), (96, TensorType.Q5_0), (100, TensorType.F16)],
)
def test_rows_that_do_not_fit_fall_back(columns: int, wanted: TensorType) -> None:
    assert plan(Quantization.Q4_K_M, tensor("blk.0.ffn_up.weight", columns)) == [wanted]


def test_norms_biases_and_routers_stay_as_they_are() -> None:
    for name in ("blk.0.attn_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight"):
        assert not may_quantize(tensor(name))
    assert not may_quantize(tensor("output_norm.weight", rows=1))
    assert may_quantize(tensor("blk.0.attn_q.weight"))


def test_layers_are_ordered_by_number_and_names_within() -> None:
    names = ["blk.10.a", "blk.2.b", "blk.2.a", "token_embd.weight", "output.weight"]
    assert sorted(names, key=file_order) == [
        "output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a",
    ]  # fmt: skip


def test_roles_follow_from_names() -> None:
    assert role_of("blk.3.ffn_down_exps.weight") == "down"
    assert role_of("blk.3.attn_qkv.weight") == "qkv"
    assert role_of("blk.3.attn_q_norm.weight") == "other"


def test_an_unknown_mix_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Fault, match="Q4_K_M") as caught:
        parse_quantization("Q4_K_XXL")
    assert caught.value.code is FaultCode.CONFIG_QUANTIZATION_UNKNOWN
