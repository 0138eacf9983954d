"""Base models: what is converted, what is refused, and what a failing tool leaves to read."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from exporter.engine import selftest
from exporter.engine.base import cache_key, cached_base, prepare_base
from exporter.engine.export import Engine
from exporter.engine.weights import Checkpoint, GgufFile
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo's model that a test may change."""
    return shutil.copytree(ANVIL, tmp_path / "model")


def in_shards(model: Path, count: int) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number in range(count):
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: weights[name] for name in names[number::count]}
        save_file(part, model / shard, metadata={"format": "pt"})
        index.update(dict.fromkeys(part, shard))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def refusal(model: Path, engine: Engine, tmp_path: Path) -> Fault:
    with pytest.raises(Fault) as caught:
        prepare_base(model, tmp_path / "cache", "key", vendor=engine.vendor)
    assert cached_base(tmp_path / "cache", "key") is None
    return caught.value


def test_a_sharded_checkpoint_gives_the_same_base(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    whole = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    in_shards(model, 3)
    sharded = prepare_base(model, tmp_path / "cache", "sharded", vendor=engine.vendor)
    with GgufFile(sharded.gguf) as ours, GgufFile(whole.gguf) as theirs:
        # Shards hold the tensors in another order, and so does the converted file.
        assert ours.by_name.keys() == theirs.by_name.keys()
        for name, info in theirs.by_name.items():
            rows = {"first_row": 0, "row_count": info.row_count}
            assert bytes(ours.raw(ours.by_name[name], **rows)) == bytes(theirs.raw(info, **rows))
    assert sharded.placements() == whole.placements()


def test_a_rotary_scaling_that_a_gguf_cannot_hold_is_refused_by_name(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    """The converter would leave it out and log a warning."""
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    (model / "config.json").write_text(json.dumps(config))
    fault = refusal(model, engine, tmp_path)
    assert fault.code is FaultCode.MODEL_NOT_CONVERTIBLE
    assert "'dynamic'" in fault.message


def test_every_matrix_of_the_base_has_a_proven_place(engine: Engine) -> None:
    base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    checkpoint = Checkpoint(ANVIL)
    assert base.placements().keys() == checkpoint.owner.keys()
    checkpoint.close()


def test_a_second_export_finds_the_base_converted(engine: Engine) -> None:
    first = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    stamp = first.gguf.stat().st_mtime_ns
    again = prepare_base(Path("/nowhere"), engine.cache, "identity", vendor=engine.vendor)
    assert again.gguf.stat().st_mtime_ns == stamp


def test_another_llama_cpp_converts_anew() -> None:
    assert cache_key("base", llama_version="1") != cache_key("base", llama_version="2")


def test_a_missing_shard_is_named(engine: Engine, model: Path, tmp_path: Path) -> None:
    in_shards(model, 3)
    (model / "model-00002-of-00003.safetensors").unlink()
    fault = refusal(model, engine, tmp_path)
    assert fault.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "model-00002-of-00003" in fault.message


def test_a_cut_shard_is_refused_before_it_is_converted(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(model, engine, tmp_path).code is FaultCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_base_with_a_number_that_is_not_finite_is_refused(
    bad: float, engine: Engine, model: Path, tmp_path: Path
) -> None:
    """Also in tensors that no adapter touches and that a mix stores as they are."""
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][7] = bad
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    fault = refusal(model, engine, tmp_path)
    assert fault.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "output_norm" in fault.message


def test_weights_that_are_pickles_are_no_weights(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    """Attack 1: only safetensors are ever opened."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refusal(model, engine, tmp_path).code is FaultCode.MODEL_WEIGHTS_INVALID


def test_code_that_a_model_brings_is_not_run(engine: Engine, model: Path, tmp_path: Path) -> None:
    """Attack 3: neither in the config nor in the tokenizer's settings."""
    canary = tmp_path / "canary"
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        settings = json.loads((model / name).read_text())
        value = "evil.Evil" if key == "AutoConfig" else ["evil.Evil", "evil.Evil"]
        (model / name).write_text(json.dumps({**settings, "auto_map": {key: value}}))
    prepare_base(model, tmp_path / "cache", "key", vendor=engine.vendor)
    assert not canary.exists()


def test_a_converter_that_fails_leaves_both_of_its_streams(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    """003-18: what the tool printed is in the error."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "architectures": ["SomeNewModelForCausalLM"]})
    )
    fault = refusal(model, engine, tmp_path)
    assert fault.code is FaultCode.MODEL_NOT_CONVERTIBLE
    assert "SomeNewModelForCausalLM" in fault.metadata["stderr"]
    assert "stdout" in fault.metadata
    assert not list((tmp_path / "cache").glob("*/base.gguf"))


def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    document = json.loads((model / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": True,
        "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(document))
    fault = refusal(model, engine, tmp_path)
    assert fault.code is FaultCode.MODEL_NOT_CONVERTIBLE
    assert "pre-tokenizer" in fault.message


def test_the_self_test_converts_a_tiny_model_once(engine: Engine, tmp_path: Path) -> None:
    """003-15: imports, symbols and a tiny conversion are checked before any work is taken."""
    selftest.check_parts(engine.vendor)
    selftest.check_conversion(tmp_path, engine.vendor, llama_version="1")
    assert [path.name for path in tmp_path.iterdir()] == ["selftest-1.passed"]
    selftest.check_conversion(tmp_path, Path("/nowhere"), llama_version="1")


def test_the_self_test_names_what_is_missing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-26: a broken installation has its code, and says which part of it."""
    with pytest.raises(Fault, match=r"conversion/__init__\.py") as caught:
        selftest.check_parts(tmp_path)
    assert caught.value.code is FaultCode.RUNTIME_GGUF_EXPORT_FAILED
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(Fault, match="sentencepiece"):
        selftest.check_parts(engine.vendor)
