"""The adapter as PEFT wrote it: factors, ranks and scales."""

import math
from typing import Any

import pytest

from exporter.domain.adapter import read_adapter, scale_of
from lexicon.faults import Fault, FaultCode

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def shapes(**more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{PREFIX}.lora_A.weight": (8, 32), f"{PREFIX}.lora_B.weight": (64, 8), **more}


def test_a_pair_of_factors_is_one_delta() -> None:
    (delta,) = read_adapter(CONFIG, shapes()).deltas
    assert delta.target == "model.layers.0.self_attn.q_proj.weight"
    assert (delta.rank, delta.scale) == (8, 2.0)


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        (CONFIG, 8, 2.0),
        ({**CONFIG, "use_rslora": True}, 16, 4.0),
        ({**CONFIG, "use_rslora": True}, 8, 16 / math.sqrt(8)),
        ({**CONFIG, "alpha_pattern": {"q_proj": 4}}, 8, 0.5),
        ({**CONFIG, "alpha_pattern": {"layers.1.self_attn.q_proj": 4}}, 8, 2.0),
        ({**CONFIG, "alpha_pattern": {"model.layers.0.self_attn.q_proj": 1}}, 2, 0.5),
    ],
)
def test_the_scale_follows_alpha_rank_and_patterns(
    config: dict[str, Any], rank: int, scale: float
) -> None:
    """Kalajdzievski 2023: alpha / sqrt(rank) when rank-stabilised, alpha / rank otherwise."""
    assert scale_of(config, "model.layers.0.self_attn.q_proj", rank=rank) == scale


@pytest.mark.parametrize(
    ("config", "tensors", "code"),
    [
        ({**CONFIG, "peft_type": "IA3"}, shapes(), FaultCode.EXPORT_TENSOR_UNMAPPED),
        ({**CONFIG, "lora_bias": True}, shapes(), FaultCode.EXPORT_TENSOR_UNMAPPED),
        (CONFIG, {f"{PREFIX}.lora_A.weight": (8, 32)}, FaultCode.MODEL_WEIGHTS_INVALID),
        (CONFIG, shapes(**{f"{PREFIX}.lora_B.weight": (64, 4)}), FaultCode.MODEL_WEIGHTS_INVALID),
        (CONFIG, shapes(**{f"{PREFIX}.lora_C.weight": (1,)}), FaultCode.EXPORT_TENSOR_UNMAPPED),
        ({**CONFIG, "lora_alpha": float("nan")}, shapes(), FaultCode.MODEL_WEIGHTS_INVALID),
        ({**CONFIG, "lora_alpha": None}, shapes(), FaultCode.MODEL_WEIGHTS_INVALID),
        ({**CONFIG, "alpha_pattern": {"(a+)+b": 1}}, shapes(), FaultCode.MODEL_WEIGHTS_INVALID),
    ],
)
def test_what_is_not_understood_is_refused(
    config: dict[str, Any], tensors: dict[str, tuple[int, ...]], code: FaultCode
) -> None:
    with pytest.raises(Fault) as caught:
        read_adapter(config, tensors)
    assert caught.value.code is code


def test_modules_trained_whole_are_replacements() -> None:
    adapter = read_adapter(CONFIG, shapes(**{"base_model.model.lm_head.weight": (100, 32)}))
    assert adapter.replacements == {"lm_head.weight": "base_model.model.lm_head.weight"}


def test_an_embedding_has_factors_of_its_own_kind() -> None:
    stem = "base_model.model.model.embed_tokens.lora_embedding"
    (delta,) = read_adapter(CONFIG, {f"{stem}_A": (8, 100), f"{stem}_B": (32, 8)}).deltas
    assert delta.is_embedding
    assert delta.target == "model.embed_tokens.weight"
