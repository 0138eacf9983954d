"""Settings of an adapter for Ollama: each is kept to the number, or refused by its name."""

import io
import json
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter.domain.gguf_format import parse_header
from lexicon.lora_config import HONOURED, IRRELEVANT, MUST_BE_DEFAULT
from tests.support.ollama_server import Ollama, an_ollama
from tunesmith.errors import InputError
from tunesmith.ollama.adapter import Base, convert, plain_settings
from tunesmith.ollama.register import register_adapter
from tunesmith.ollama.server import Server

Shapes = dict[str, tuple[int, int]]

CODE = "DEP_OLLAMA_REGISTRATION_FAILED"
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
WIDTH, RANK, OF_B = 4, 8, 5.0
BASE = Base(architecture="qwen3", width=WIDTH, layer_count=2, head_count=2, kv_head_count=2)
Q_PROJ, UP_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
MODULES = {Q_PROJ: "blk.0.attn_q.weight", UP_PROJ: "blk.1.ffn_up.weight"}
FIELDS = sorted({*HONOURED, *IRRELEVANT, *MUST_BE_DEFAULT})


def saved(tensors: Shapes) -> bytes:
    """A safetensors file of float32, each number that of B."""
    table, data = {}, b""
    for name, (rows, columns) in tensors.items():
        numbers = struct.pack("<f", OF_B) * (rows * columns)
        offsets = [len(data), len(data) + len(numbers)]
        table[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
        data += numbers
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def factors(*modules: str, rank: int = RANK) -> Shapes:
    found = {}
    for module in modules:
        found[f"base_model.model.{module}.lora_A.weight"] = (rank, WIDTH)
        found[f"base_model.model.{module}.lora_B.weight"] = (6, rank)
    return found


def written(config: dict[str, Any], tensors: Shapes | None = None) -> bytes:
    weights, target = saved(tensors or factors(*MODULES)), io.BytesIO()
    convert(plain_settings(config), io.BytesIO(weights), len(weights), BASE, target)
    return target.getvalue()


def scales(content: bytes) -> dict[str, float]:
    """The factor by module that llama.cpp computes, with what was multiplied into B."""
    header = parse_header(content, file_bytes=len(content))
    alpha = header.metadata["adapter.lora.alpha"].scalar
    found = {}
    for info in header.tensors:
        if info.name.endswith(".lora_b"):
            (number,) = struct.unpack_from("<f", content, header.data_start + info.offset)
            factor = float(alpha) / info.column_count if alpha else 1.0
            found[info.name.removesuffix(".lora_b")] = factor * number / OF_B
    return found


def refusal(config: dict[str, Any], tensors: Shapes | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        written(config, tensors)
    assert caught.value.code == CODE
    assert caught.value.message.startswith("The adapter cannot be registered alone")
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("use_qalora", True),
        ("layer_replication", [[0, 2], [1, 4]]),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [1]),
        ("peft_type", "IA3"),
        ("from_the_future", 1),
        ("alpha_pattern", {"(?=q)q_proj": 4}),
    ],
)
def test_what_an_export_refuses_too_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal({**CONFIG, field: value})
    assert error.metadata["field"] == field
    assert field in error.message
    assert "--adapter" not in error.remedy, "the merged model cannot be made either"
    assert "plain LoRA" in error.remedy or "with PEFT" in error.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("target_parameters", ["q_proj.weight"]),
        ("ensure_weight_tying", True),
    ],
)
def test_what_only_a_merge_can_say_is_refused_with_the_way_to_it(field: str, value: Any) -> None:
    error = refusal({**CONFIG, field: value})
    assert error.metadata["field"] == field
    assert field in error.message
    assert "leave out --adapter" in error.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_rslora", "false"),
        ("use_dora", "false"),
        ("modules_to_save", "lm_head"),
        ("lora_alpha", None),
        ("lora_alpha", "16"),
        ("lora_alpha", 10**400),
        ("lora_alpha", math.nan),
        ("alpha_pattern", {"q_proj": 10**400}),
        ("alpha_pattern", {"q_proj": [1]}),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", 4),
        ("r", "8"),
        ("peft_type", []),
    ],
)
def test_a_value_that_is_none_of_its_field_is_damage(field: str, value: Any) -> None:
    error = refusal({**CONFIG, field: value})
    assert error.metadata["field"] == field
    assert field in error.message
    assert "tunesmith pull" in error.remedy


@pytest.mark.parametrize("lora", [{"r": 4}, {"rank_pattern": {"q_proj": 4}}, {"r": None}, {"r": 9}])
def test_ranks_are_those_of_the_settings(lora: dict[str, Any]) -> None:
    assert "rank" in refusal({**CONFIG, **lora}).message


def test_a_rank_by_module_is_taken() -> None:
    tensors = {**factors(Q_PROJ, rank=4), **factors(UP_PROJ)}
    found = scales(written({**CONFIG, "rank_pattern": {"[qk]_proj": 4}}, tensors))
    assert found == {MODULES[Q_PROJ]: 4.0, MODULES[UP_PROJ]: 2.0}


def test_the_first_pattern_of_peft_gives_the_alpha() -> None:
    patterns = {"^q_proj": 99, r".*\.[01]\.self_attn\.\w+": 4, "q_proj": 32}
    found = scales(written({**CONFIG, "alpha_pattern": patterns}))
    assert found == {MODULES[Q_PROJ]: 0.5, MODULES[UP_PROJ]: 2.0}


@pytest.mark.parametrize("alpha", [1.5e-6, 1.234567891e-3, 0, 1e-42, 1e-60, -3, 3e37])
def test_an_alpha_of_any_size_keeps_its_digits(alpha: float) -> None:
    """llama.cpp takes an alpha of 0, also one that a float32 rounds to it, for a factor of 1."""
    found = scales(written({**CONFIG, "lora_alpha": alpha}))
    # The smallest float32.
    assert found[MODULES[Q_PROJ]] == pytest.approx(alpha / RANK, rel=1e-6, abs=2.0**-149)


def test_what_no_float32_holds_is_refused() -> None:
    error = refusal({**CONFIG, "lora_alpha": 2e38, "use_rslora": True})
    assert "float32" in error.message


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (8, 9)}, "embed_tokens"),
        (factors("model.layers.1.mlp.gate_up_proj"), "twice"),
        (factors("other.layers.1.mlp.up_proj"), "twice"),
    ],
)
def test_tensors_without_a_place_of_their_own_are_refused(tensors: Shapes, told: str) -> None:
    assert told in refusal(CONFIG, {**factors(*MODULES), **tensors}).message


def test_settings_are_refused_before_a_base_is_pulled(tmp_path: Path) -> None:
    path = tmp_path / "lora.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_config.json", json.dumps({**CONFIG, "use_qalora": True}))
        archive.writestr("adapter_model.safetensors", saved(factors(Q_PROJ)))
    with an_ollama(Ollama(library={"base": {}})) as ollama:
        with pytest.raises(InputError, match="use_qalora"):
            register_adapter(path, "tuned", "base", Server(ollama.url))
        assert not ollama.requests


def test_a_setting_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Readers of JSON take the first or the last of them: the model would depend on the reader."""
    path = tmp_path / "lora.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_config.json", json.dumps(CONFIG)[:-1] + ', "lora_alpha": 8}')
        archive.writestr("adapter_model.safetensors", saved(factors(Q_PROJ)))
    with an_ollama(Ollama(library={"base": {}})) as ollama:
        with pytest.raises(InputError, match="twice"):
            register_adapter(path, "tuned", "base", Server(ollama.url))
        assert not ollama.requests


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = st.sampled_from([8, 4, 16, 0, 0.5, -1, 1e-44, 2.9e38, 10**400, True, "8"])
KEYS = st.sampled_from(["q_proj", "up_proj", "proj", "[qku]p?_proj", "layers.1.mlp.up_proj", "("])
VALUES = st.one_of(
    JSON,
    NUMBERS,
    st.dictionaries(KEYS, NUMBERS, max_size=3),
    st.sampled_from([False, True, None, [], {}, "LORA", "none", "gaussian", "false", "pissa"]),
)
CONFIGS = st.builds(
    lambda plain, more: {**CONFIG, **plain, **more},
    st.fixed_dictionaries(
        {},
        optional={
            "r": st.just(8),
            "lora_alpha": NUMBERS,
            "use_rslora": st.booleans(),
            "alpha_pattern": st.dictionaries(KEYS, NUMBERS, max_size=3),
            "rank_pattern": st.dictionaries(KEYS, st.sampled_from([8, 4]), max_size=2),
        },
    ),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), VALUES, max_size=2),
)


def scale_by_peft(config: dict[str, Any], module: str) -> float:
    """`get_pattern_key` and `update_layer` of peft 0.21.2, in their own words."""
    alpha = config["lora_alpha"]
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = value
            break
    return float(alpha / (math.sqrt(RANK) if config.get("use_rslora") else RANK))


@settings(max_examples=500)
@given(config=CONFIGS)
@example(config={**CONFIG, "alpha_pattern": {"q_proj": 2.9e38}, "use_rslora": True})
@example(config={**CONFIG, "\ud800": 1})
@example(config={**CONFIG, "rank_pattern": {"\ud800(": 1}})
def test_any_json_is_kept_to_the_number_or_refused(config: dict[str, Any]) -> None:
    found, error = dict[str, float](), None
    try:
        found = scales(written(config))
    except InputError as refused:
        error = refused
    if error is not None:
        assert error.code == CODE
        assert error.message.isprintable()
        return
    assert set(config) <= {*FIELDS} | {name for name in config if not config[name]}
    for module, name in MODULES.items():
        wanted = scale_by_peft(config, module)
        assert found[name] == pytest.approx(wanted, rel=1e-6, abs=2.0**-149)
