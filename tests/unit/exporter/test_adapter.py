"""The adapter as PEFT wrote it: factors, ranks and scales."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain.adapter import Adapter, MatrixDelta, read_adapter
from lexicon.faults import Fault, FaultCode
from lexicon.lora_config import HONOURED, IRRELEVANT, MUST_BE_DEFAULT, scale_of

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
MODULE = "model.layers.0.self_attn.q_proj"
PREFIX = f"base_model.model.{MODULE}"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"

INVALID = FaultCode.MODEL_WEIGHTS_INVALID
UNSUPPORTED = FaultCode.EXPORT_ADAPTER_UNSUPPORTED


def factors(stem: str = PREFIX, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.lora_A.weight": (rank, 32), f"{stem}.lora_B.weight": (64, rank)}


def refusal(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Fault:
    with pytest.raises(Fault) as caught:
        read_adapter(config, tensors)
    return caught.value


def the_delta(config: dict[str, Any], rank: int = 8) -> MatrixDelta:
    (delta,) = read_adapter(config, factors(rank=rank)).deltas
    return delta


def test_a_pair_of_factors_is_one_delta() -> None:
    delta = the_delta(CONFIG)
    assert delta.target == "model.layers.0.self_attn.q_proj.weight"
    assert (delta.rank, delta.scale) == (8, 2.0)


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        (CONFIG, 8, 2.0),
        ({"peft_type": "LORA"}, 8, 1.0),
        ({**CONFIG, "r": 16, "use_rslora": True}, 16, 4.0),
        ({**CONFIG, "use_rslora": True}, 8, 16 / math.sqrt(8)),
        ({**CONFIG, "alpha_pattern": {"q_proj": 4}}, 8, 0.5),
        ({**CONFIG, "alpha_pattern": {"layers.1.self_attn.q_proj": 4}}, 8, 2.0),
        ({**CONFIG, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {MODULE: 1}}, 2, 0.5),
        ({**CONFIG, "alpha_pattern": {r"layers\.[01]\..*_proj": 4, "q_proj": 2}}, 8, 0.5),
    ],
)
def test_the_scale_follows_alpha_rank_and_patterns(
    config: dict[str, Any], rank: int, scale: float
) -> None:
    """Kalajdzievski 2023: alpha / sqrt(rank) when rank-stabilised, alpha / rank otherwise."""
    assert the_delta(config, rank).scale == scale


@pytest.mark.parametrize(
    ("config", "rank"),
    [(CONFIG, 4), ({**CONFIG, "rank_pattern": {"q_proj": 4}}, 8), ({"peft_type": "LORA"}, 4)],
)
def test_factors_of_another_rank_than_the_settings_say_are_refused(
    config: dict[str, Any], rank: int
) -> None:
    fault = refusal(config, factors(rank=rank))
    assert fault.code is INVALID
    assert MODULE in fault.message


def test_a_bare_parameter_is_looked_up_by_its_own_name() -> None:
    """`_inject_parameters` of peft passes the parameter's name on, not the module's."""
    config = {**CONFIG, "target_parameters": ["q_proj.weight"]}
    assert the_delta(config).is_parameter
    patterns = {r".*q_proj\.weight": 4, "q_proj": 1}
    assert the_delta({**config, "alpha_pattern": patterns}).scale == 0.5
    assert the_delta({**CONFIG, "alpha_pattern": patterns}).scale == 0.125
    assert not the_delta({**CONFIG, "target_parameters": ["_proj.weight"]}).is_parameter


def test_experts_that_are_stacked_get_their_scale_when_their_count_is_known() -> None:
    stacked = {f"{EXPERTS}.lora_A.weight": (6400, 4), f"{EXPERTS}.lora_B.weight": (6, 6400)}
    inner = {name.replace(".lora", ".base_layer.lora"): of for name, of in stacked.items()}
    config = {**CONFIG, "rank_pattern": {"experts.down_proj": 50}}
    adapter = read_adapter(config, {**stacked, **inner})
    assert len(adapter.deltas) == 2
    assert all(math.isnan(delta.scale) for delta in adapter.deltas)
    assert scale_of(adapter.config, f"{EXPERTS}.down_proj", rank=50) == 16 / 50
    assert scale_of(adapter.config, f"{EXPERTS}.gate_up_proj", rank=8) == 2.0
    with pytest.raises(Fault) as caught:
        scale_of(adapter.config, f"{EXPERTS}.gate_up_proj", rank=50)
    assert caught.value.code is INVALID


@pytest.mark.parametrize(
    ("config", "tensors", "code"),
    [
        (CONFIG, {f"{PREFIX}.lora_A.weight": (8, 32)}, INVALID),
        (CONFIG, {**factors(), f"{PREFIX}.lora_B.weight": (64, 4)}, INVALID),
        (CONFIG, {**factors(), f"{PREFIX}.lora_B.weight": (64, 8, 1)}, INVALID),
        (CONFIG, {**factors(), f"{PREFIX}.lora_B.weight": (0, 8)}, INVALID),
        (CONFIG, {**factors(), "model.\n.weight": (1,)}, INVALID),
        (CONFIG, {**factors(), "m" * 600: (1,)}, INVALID),
        (CONFIG, {**factors(), f"{PREFIX}.lora_C.weight": (1,)}, UNSUPPORTED),
        (CONFIG, {**factors(), f"{PREFIX}.lora_B.bias": (64,)}, UNSUPPORTED),
        (CONFIG, {**factors(), f"{PREFIX}.lora_diag": (8,)}, UNSUPPORTED),
        (CONFIG, {**factors(), f"{PREFIX}.base_layer.bias": (64,)}, UNSUPPORTED),
        (CONFIG, factors(f"{PREFIX}.base_layer"), UNSUPPORTED),
        (CONFIG, factors(f"{EXPERTS}.base_layer.base_layer"), UNSUPPORTED),
        (CONFIG, {f"{PREFIX}.lora_A.default.weight": (8, 32)}, UNSUPPORTED),
        (CONFIG, {f"{PREFIX}.lora_A": (8, 32)}, UNSUPPORTED),
        (CONFIG, {"lm_head.modules_to_save.other.weight": (9, 9)}, UNSUPPORTED),
        (CONFIG, {"embed.token_adapter.trainable_tokens_delta": (2, 9)}, UNSUPPORTED),
    ],
)
def test_tensors_that_are_not_understood_are_refused(
    config: dict[str, Any], tensors: dict[str, tuple[int, ...]], code: FaultCode
) -> None:
    assert refusal(config, tensors).code is code


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({**factors(), f"{PREFIX}.weight": (64, 32)}, f"{MODULE}.weight"),
        ({**factors(), **factors(MODULE)}, MODULE),
        ({**factors(), **factors(f"{PREFIX}.base_layer")}, f"{MODULE}.weight"),
        ({"base_model.model.lm_head.weight": (9, 9), "lm_head.weight": (9, 9)}, "lm_head.weight"),
        ({"e.base_layer.weight": (9, 9), "e.weight": (9, 9)}, "e.weight"),
        (
            {**factors(), f"{PREFIX}.lora_embedding_A": (8, 32), f"{PREFIX}.lora_embedding_B": ()},
            f"{MODULE}.weight",
        ),
    ],
)
def test_one_matrix_changed_twice_is_refused(
    tensors: dict[str, tuple[int, ...]], name: str
) -> None:
    fault = refusal(CONFIG, tensors)
    assert fault.code is INVALID
    assert f"changes {name} twice" in fault.message


MAGNITUDE = f"{PREFIX}.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("use_dora", "more", "code"),
    [
        (True, {}, INVALID),
        (False, {MAGNITUDE: (64,)}, INVALID),
        (True, {MAGNITUDE: (32,)}, INVALID),
        (True, {MAGNITUDE: (64, 1)}, INVALID),
        (True, {MAGNITUDE: (64,), f"{MAGNITUDE}.weight": (64,)}, INVALID),
        (True, {MAGNITUDE: (64,), **factors(EXPERTS)}, UNSUPPORTED),
        (
            True,
            {MAGNITUDE: (64,), "e.lora_embedding_A": (8, 9), "e.lora_embedding_B": (32, 8)},
            UNSUPPORTED,
        ),
    ],
)
def test_magnitudes_come_with_use_dora_and_for_linear_layers(
    use_dora: bool, more: dict[str, tuple[int, ...]], code: FaultCode
) -> None:
    assert refusal({**CONFIG, "use_dora": use_dora}, {**factors(), **more}).code is code


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_a_magnitude_belongs_to_its_delta(suffix: str) -> None:
    tensors = {**factors(), f"{MAGNITUDE}{suffix}": (64,)}
    (delta,) = read_adapter({**CONFIG, "use_dora": True}, tensors).deltas
    assert delta.magnitude == f"{MAGNITUDE}{suffix}"


def test_modules_trained_whole_are_replacements() -> None:
    adapter = read_adapter(CONFIG, {**factors(), "base_model.model.lm_head.weight": (100, 32)})
    assert adapter.replacements == {"lm_head.weight": "base_model.model.lm_head.weight"}


def test_an_embedding_has_factors_of_its_own_kind() -> None:
    stem = "base_model.model.model.embed_tokens.lora_embedding"
    copy = "base_model.model.model.embed_tokens.base_layer.weight"
    adapter = read_adapter(CONFIG, {f"{stem}_A": (8, 99), f"{stem}_B": (32, 8), copy: (99, 32)})
    (delta,) = adapter.deltas
    assert delta.is_embedding
    assert delta.target == "model.embed_tokens.weight"
    assert adapter.base_copies == {delta.target: copy}


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_weights_are_told(is_tied: bool) -> None:
    config = {**CONFIG, "ensure_weight_tying": is_tied}
    assert read_adapter(config, factors()).ties_weights is is_tied


NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 8, 0, 1, 4096, 4097])
WORDS = st.text(max_size=12) | st.sampled_from(
    ["LORA", "q_proj", "false", "none", "pissa", "(a|b)$", "[01]", "^model", "(", "a{9}{9}", "\\"]
)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted({*HONOURED, *IRRELEVANT, *MUST_BE_DEFAULT})) | st.text(max_size=8)
KINDS = st.sampled_from(
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "weight",
     "base_layer.weight", "base_layer.lora_A.weight", "lora_embedding_B", "lora_B.bias"]
)  # fmt: skip
TENSORS = st.builds("{}.{}".format, st.sampled_from([PREFIX, MODULE, EXPERTS, "e"]), KINDS)
SHAPES = st.lists(st.sampled_from([0, 1, 8, 32, 64]), max_size=3).map(tuple)


@given(
    config=st.dictionaries(FIELDS, VALUES, max_size=5),
    is_lora=st.booleans(),
    tensors=st.dictionaries(TENSORS, SHAPES, max_size=4),
)
def test_whatever_the_settings_are_the_answer_is_an_adapter_or_a_code(
    config: dict[str, Any], is_lora: bool, tensors: dict[str, tuple[int, ...]]
) -> None:
    settings = {**config, **({"peft_type": "LORA"} if is_lora else {})}
    fault: Fault | None = None
    try:
        assert isinstance(read_adapter(settings, {**factors(), **tensors}), Adapter)
    except Fault as raised:
        fault = raised
    assert fault is None or fault.code in (INVALID, UNSUPPORTED)
    assert fault is None or fault.message.isprintable()
