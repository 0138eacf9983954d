"""Each field of `adapter_config.json` is honoured, without a part in the merge, or refused."""

from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from lexicon.lora_config import (
    HONOURED,
    IRRELEVANT,
    MUST_BE_DEFAULT,
    AdapterConfig,
    read_config,
    scale_of,
)

INVALID = FaultCode.MODEL_WEIGHTS_INVALID
UNSUPPORTED = FaultCode.EXPORT_ADAPTER_UNSUPPORTED


def reading(field: str, value: Any) -> AdapterConfig:
    return read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, field: value})


def refusal(field: str, value: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        reading(field, value)
    assert caught.value.metadata["field"] == field
    assert field in caught.value.message
    assert len(caught.value.message) < 200
    return caught.value


def test_no_field_is_in_two_tables() -> None:
    tables = (HONOURED, IRRELEVANT, MUST_BE_DEFAULT)
    assert len({field for table in tables for field in table}) == sum(map(len, tables))


@pytest.mark.parametrize("field", sorted(IRRELEVANT))
@pytest.mark.parametrize("value", [None, True, 0.1, "x", [1], {"a": 1}, 10**400])
def test_fields_without_a_part_in_the_merge_hold_what_they_like(field: str, value: Any) -> None:
    assert reading(field, value).rank == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fan_in_fan_out", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("use_qalora", True),
        ("layer_replication", [[0, 2], [1, 4]]),
        ("alora_invocation_tokens", [1, 2]),
        ("trainable_token_indices", [1]),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("megatron_config", {"a": 1}),
        ("kasa_config", {"beta": 0.1}),
        ("kasa_config", {}),
        ("monteclora_config", {}),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("peft_type", "IA3"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "OLoRA"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "from_the_future"),
        ("from_the_future", True),
        ("from_the_future", 0),
        ("from_the_future", {"a": 1}),
    ],
)
def test_what_gives_another_model_is_refused_by_name(field: str, value: Any) -> None:
    assert refusal(field, value).code is UNSUPPORTED


@pytest.mark.parametrize("field", sorted(MUST_BE_DEFAULT))
def test_every_field_that_must_be_default_may_be_it_and_nothing_else(field: str) -> None:
    """A rule whose values never reach it would be a hole in the list."""
    rule = MUST_BE_DEFAULT[field]
    assert reading(field, None).rank == 8
    assert reading(field, rule.default).rank == 8
    for value in (True, "x", [1], {"a": 1}, 1, 0.5):
        assert refusal(field, value).code in (INVALID, UNSUPPORTED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_replication", []),
        ("alora_invocation_tokens", []),
        ("trainable_token_indices", {}),
        ("merge_weights", False),
        ("enable_lora", None),
        ("from_the_future", []),
        ("from_the_future", ""),
        *(
            ("init_lora_weights", value)
            for value in (None, True, False, "gaussian", "Gaussian", "orthogonal", "eva", "mica")
        ),
        ("target_modules", "all-linear"),
        ("target_modules", ["q_proj"]),
        ("target_parameters", []),
        ("alpha_pattern", {}),
        ("rank_pattern", None),
        ("lora_alpha", -1.5),
    ],
)
def test_what_changes_nothing_passes(field: str, value: Any) -> None:
    assert reading(field, value).rank == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", None),
        ("r", 0),
        ("r", -8),
        ("r", True),
        ("r", 8.0),
        ("r", "8"),
        ("r", 4097),
        ("r", 10**400),
        ("lora_alpha", None),
        ("lora_alpha", True),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e300),
        ("use_rslora", "false"),
        ("use_rslora", 1),
        ("use_dora", "true"),
        ("use_dora", {}),
        ("use_qalora", "false"),
        ("fan_in_fan_out", 0),
        ("ensure_weight_tying", "false"),
        ("bias", False),
        ("layer_replication", {}),
        ("alora_invocation_tokens", "1"),
        ("kasa_config", []),
        ("init_lora_weights", "false"),
        ("init_lora_weights", 1),
        ("init_lora_weights", ["pissa"]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", [1]),
        ("target_parameters", "experts.down_proj"),
        ("target_parameters", [None]),
        ("modules_to_save", "lm_head"),
        ("rank_pattern", []),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": True}),
        ("rank_pattern", {"q_proj": 4.0}),
        ("rank_pattern", {"q_proj": 10**400}),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", ["q_proj"]),
        ("alpha_pattern", "q_proj"),
        ("alpha_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"q_proj": float("-inf")}),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
    ],
)
def test_a_value_that_is_none_of_its_field_is_damage(field: str, value: Any) -> None:
    assert refusal(field, value).code is INVALID


def test_missing_settings_are_those_of_peft() -> None:
    config = read_config({"peft_type": "LORA"})
    assert (config.rank, config.alpha) == (8, 8)
    assert not any((config.is_rank_stabilised, config.has_magnitudes, config.ties_weights))


def test_the_factor_follows_rank_alpha_and_their_patterns() -> None:
    """Hu et al. 2021: alpha / rank; Kalajdzievski 2023: alpha / sqrt(rank)."""
    plain = {"peft_type": "LORA", "r": 16, "lora_alpha": 8}
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"[qk]_proj": 3}}
    assert scale_of(read_config(plain), "layers.0.q_proj", rank=16) == 0.5
    assert scale_of(read_config({**plain, "use_rslora": True}), "q_proj", rank=16) == 2.0
    config = read_config({**plain, **patterns})
    assert scale_of(config, "layers.0.q_proj", rank=4) == 0.75
    assert scale_of(config, "layers.0.k_proj", rank=16) == 0.1875
    with pytest.raises(Fault) as caught:
        scale_of(config, "layers.0.q_proj", rank=16)
    assert caught.value.code is INVALID


def test_the_remedy_of_a_changed_base_names_the_way_to_plain_lora() -> None:
    remedy = refusal("init_lora_weights", "olora").remedy
    assert "path_initial_model_for_weight_conversion" in remedy
    assert "path_initial" not in refusal("use_qalora", True).remedy


def test_a_name_from_the_file_is_shown_short_and_printable() -> None:
    for name in ("x" * 5000, "a\nb", "\x1b[31m"):
        with pytest.raises(Fault) as caught:
            read_config({"peft_type": "LORA", name: 1})
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 200
