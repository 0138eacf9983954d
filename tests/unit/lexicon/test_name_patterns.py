"""Patterns of module names match as PEFT's `get_pattern_key` does, and never take long."""

import re
import warnings
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lexicon import name_patterns
from lexicon.faults import Fault, FaultCode
from lexicon.name_patterns import NamePatterns

NAME = "model.layers.10.self_attn.q_proj"
MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in range(32)
    for module in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip


def value_by_peft(values: dict[str, int], name: str) -> int:
    """`values.get(get_pattern_key(values, name), 0)` of peft 0.21.2, in its own words."""
    for key, value in values.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return values.get(name, 0)


def is_regular(key: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return False
    return True


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj"],
        ["proj"],
        [NAME],
        ["layers.1.self_attn.q_proj"],
        ["layers.1..self_attn.q_proj"],
        ["(q_proj|k_proj)$"],
        ["(?:q|k)_proj"],
        ["[qk]_proj", "q_proj"],
        ["[q|k]_proj"],
        ["layers.[01].self_attn.q_proj"],
        [r"layers\.1[0-9]\..*_proj"],
        [r"layers\.(?:[0-9]|1[01])\.self_attn\.q_proj"],
        ["^q_proj"],
        ["^model.layers.10.self_attn.q_proj"],
        ["^self_attn.q_proj", ".*attn.*"],
        [r"\d+\.self_attn\.\w+"],
        [r".*\bq_proj"],
        [r".*\Bq_proj"],
        [r".*\.\d{1,2}\..*"],
        [r".*\.\d{3,}\..*"],
        ["a)|(model"],
        ["k_proj", "self_attn.q_proj", "q_proj"],
        [""],
        [".*?q_proj"],
        ["[^k]_proj"],
        [r"[\[q\-]_proj"],
    ],
)
def test_the_first_pattern_that_matches_gives_the_value(keys: list[str]) -> None:
    values = {key: number for number, key in enumerate(keys, start=1)}
    patterns = NamePatterns("rank_pattern", values)
    for name in (NAME, *MODULES, "q_proj", "lm_head"):
        assert patterns.get(name, 0) == value_by_peft(values, name), name


ATOMS = [
    "a", "b", ".", r"\.", "0", "[ab]", "[^a]", "[0-9]", "[a|b]", r"\d", r"\w", r"\W", "^", "$",
    r"\b", r"\B", "(", "(?:", ")", "|", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "+?",
]  # fmt: skip


@settings(max_examples=400)
@given(
    key=st.lists(st.sampled_from(ATOMS), max_size=9).map("".join),
    names=st.lists(st.text("ab.0x_-", min_size=1, max_size=9), min_size=1, max_size=5),
)
def test_every_pattern_that_is_read_means_what_it_means_to_peft(key: str, names: list[str]) -> None:
    key += ")" * (key.count("(") - key.count(")"))
    patterns = code = None
    try:
        patterns = NamePatterns("alpha_pattern", {key: 1})
    except Fault as fault:
        code = fault.code
    if patterns is not None:
        assert [patterns.get(name, 0) for name in names] == [
            value_by_peft({key: 1}, name) for name in names
        ]
    elif is_regular(key):
        assert code is FaultCode.EXPORT_ADAPTER_UNSUPPORTED
        assert re.search(r"[*+?}]\+", key), "only possessive repetitions are not read"
    else:
        assert code is FaultCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize(
    "key",
    [
        "(?=q)q_proj", "(?!q).*", "(?<=x)q", r"(q)\1", "(?P<name>q)", "(?i:q_proj)", "q_proj*+",
        "[[a]", "[a&&b]", "[]a]", r"\Aq", r"q\Z", "q{,}", "q{", "(?#x)q", "(?>q)",
        "((a{30}){30}){30}",
    ],
)  # fmt: skip
def test_a_construct_that_is_not_read_is_refused_by_name(key: str) -> None:
    with pytest.raises(Fault) as caught:
        NamePatterns("rank_pattern", {key: 1})
    assert caught.value.code is FaultCode.EXPORT_ADAPTER_UNSUPPORTED
    assert caught.value.metadata["field"] == "rank_pattern"
    assert repr(key) in caught.value.message


@pytest.mark.parametrize(
    "key",
    [
        "(", "q)", "[a", "*q", "q**", "a{3,2}", "\\", "(?z)q", "[b-a]", "(?P<1>q)", r"(?<=q*)q",
        "(?i)q", "a{99999999999}", "(" * 65 + ")" * 65, "q|" * 501,
    ],
)  # fmt: skip
def test_what_is_no_regular_expression_is_damage(key: str) -> None:
    with pytest.raises(Fault) as caught:
        NamePatterns("alpha_pattern", {key: 1})
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "alpha_pattern" in caught.value.message


@pytest.mark.parametrize(
    "key", ["[[a]", "[^[a]", "[a[b]", "[a--b]", "[a||b]", "[a~~b]", "[a&&b]", "[]||a]", "[^]--a]"]
)
def test_a_set_of_which_python_warns_reaches_no_log(key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Fault) as caught:
            NamePatterns("rank_pattern", {key: 1})
    assert caught.value.code is FaultCode.EXPORT_ADAPTER_UNSUPPORTED
    assert "set" in caught.value.message


@settings(max_examples=1000)
@given(key=st.text("[[[]]^--&&~~||\\\\ab0()?#:x*", max_size=14))
@example(key=r"(?#[x)[]--a]")
@example(key=r"(?x:#[]" + "\n)[[a]")
@example(key=r"[\[]")
@example(key=r"[\--a]")
def test_no_pattern_makes_python_warn(key: str) -> None:
    with warnings.catch_warnings(), suppress(Fault):
        warnings.simplefilter("error")
        NamePatterns("rank_pattern", {key: 1})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "key", ["(a+)+b", r"(\w+\.?)*x", "(.*)*(.*)*(.*)*x", "(a|a|a?)*!", "((((.*)*)*)*)*!"]
)
def test_a_pattern_that_would_backtrack_for_ever_is_matched_at_once(key: str) -> None:
    patterns = NamePatterns("alpha_pattern", {key: 1})
    assert {patterns.get(name, 0) for name in [*MODULES, "a" * 60]} == {0}


@pytest.mark.timeout(50)
def test_all_matches_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_patterns, "MAX_STEPS", 100_000)
    patterns = NamePatterns("alpha_pattern", {"(a|b|.{1,900})*!": 1})
    patterns.get("a" * 40, 0)
    with pytest.raises(Fault) as caught:
        patterns.get("a" * 400, 0)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "too long" in caught.value.message


def test_the_patterns_of_every_expert_of_a_large_mixture_are_read() -> None:
    """`rank="eva"` and `convert_to_lora` of peft write one plain name for each module."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj"
        for layer in range(48)
        for expert in range(30)
    ]
    patterns = NamePatterns("rank_pattern", {name: at for at, name in enumerate(names)})
    assert [patterns.get(name, -1) for name in names[::97]] == list(range(0, len(names), 97))


@pytest.mark.parametrize(
    "values",
    [
        {f"({number}|x)": 1 for number in range(5000)},
        {f"name{number}": 1 for number in range(name_patterns.MAX_PATTERNS + 1)},
    ],
)
def test_too_many_patterns_are_refused_before_they_are_matched(values: dict[str, int]) -> None:
    with pytest.raises(Fault) as caught:
        NamePatterns("rank_pattern", values)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
