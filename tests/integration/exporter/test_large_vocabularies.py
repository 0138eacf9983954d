"""Vocabularies of the catalog's true size: the same file as the converter's, in little memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.engine.conversion.tokenizer_json import TokenizerReader
from exporter.engine.conversion.transformers_stand_in import NOT_AHEAD, WHOLE
from tests.bench import shapes
from tests.bench.watching import Peak, watching
from tests.integration.exporter.making import ANVIL, convert_classically, convert_here
from tests.support.vocabularies import write_gemma, write_qwen

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# What a whole export may take, less an exporter that waits for its converter.
CONVERTER_MIB = 512 - 72
WriteTokenizer = Callable[[Path], None]


def small_gemma(folder: Path) -> None:
    write_gemma(folder, pieces=4096)


def small_qwen(folder: Path) -> None:
    write_qwen(folder, pieces=4096)


def a_checkpoint(folder: Path, write: WriteTokenizer) -> Path:
    """Few weights and the vocabulary's true number of rows."""
    kind = shapes.GEMMA if "gemma" in write.__name__ else shapes.QWEN_152K
    scratch = folder / "tokenizer"
    scratch.mkdir()
    write(scratch)
    document = json.loads((scratch / "tokenizer.json").read_text(encoding="utf-8"))
    rows = len(document["model"]["vocab"]) + len(document["added_tokens"])
    shape = replace(
        kind, hidden=256, feed=256, layers=1, heads=2, kv_heads=1, head_dim=128,
        vocabulary=rows, write_tokenizer=write,
    )  # fmt: skip
    shapes.write_checkpoint(shape, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("write", [small_gemma, small_qwen])
def test_a_tokenizer_that_is_read_ahead_gives_the_converter_s_file(
    write: WriteTokenizer, vendor: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = a_checkpoint(tmp_path, write)
    ours, whole = tmp_path / "ours.gguf", tmp_path / "whole.gguf"
    with caplog.at_level("INFO", logger="exporter"):
        convert_here(model, ours, vendor=vendor, outtype="bf16", whole_tensors=False)
    assert not [line for line in caplog.messages if line in {NOT_AHEAD, WHOLE}]
    convert_classically(model, whole, vendor=vendor, outtype="bf16")
    assert ours.read_bytes() == whole.read_bytes()


def test_the_library_is_loaded_only_for_what_was_not_read_ahead(
    vendor: Path, tmp_path: Path
) -> None:
    """Whoever asks for more of transformers meets the library, and afterwards it is whole again."""
    script = f"""
import sys
from pathlib import Path
from exporter.engine.conversion.transformers_stand_in import read_ahead
with read_ahead(Path({str(ANVIL)!r}), Path({str(vendor)!r})):
    from transformers import AutoConfig
    assert AutoConfig.from_pretrained({str(ANVIL)!r}).to_dict()["model_type"] == "llama"
    assert "transformers.utils" not in sys.modules
    import transformers.models.llama.configuration_llama as llama
    assert llama.LlamaConfig.model_type == "llama"
    import transformers
    assert transformers.AutoConfig is AutoConfig
    other = Path({str(tmp_path)!r}) / "config.json"
    other.write_text('{{"model_type": "qwen2"}}')
    assert AutoConfig.from_pretrained(other.parent).model_type == "qwen2"
import transformers
assert transformers.AutoConfig.__module__ == "transformers.models.auto.configuration_auto"
with read_ahead(Path({str(ANVIL)!r}), Path({str(vendor)!r})):
    assert transformers.AutoConfig is not AutoConfig
    assert transformers.AutoConfig.from_pretrained({str(ANVIL)!r}).to_dict()
assert transformers.AutoConfig.__module__ == "transformers.models.auto.configuration_auto"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_gemma, write_qwen])
def test_a_large_vocabulary_is_converted_in_little_memory(
    write: WriteTokenizer, vendor: Path, tmp_path: Path
) -> None:
    """262,144 tokens of Gemma's kind and 151,643 of Qwen's: the same bytes, and memory to spare."""
    model = a_checkpoint(tmp_path, write)
    ours, whole, peak = tmp_path / "ours.gguf", tmp_path / "whole.gguf", Peak()
    command = [
        sys.executable, "-m", "exporter.engine.conversion", "--vendor", str(vendor), "--model",
        str(model), "--outtype", "bf16", "--record", str(tmp_path / "record"), "--outfile",
    ]  # fmt: skip
    tool = subprocess.Popen([*command, str(ours)], stderr=subprocess.DEVNULL)
    with watching(tool.pid, tmp_path / "tokenizer", peak):
        assert tool.wait() == 0
    assert peak.anonymous_mib <= CONVERTER_MIB
    subprocess.run([*command, str(whole), "--whole-tensors"], check=True, stderr=subprocess.DEVNULL)
    assert ours.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        (ANVIL / "tokenizer.json").read_text(encoding="utf-8"),
        '{"model": {"type": "BPE", "vocab": {"\\ud83d": 1}, "merges": ["a b"]}}',
        '{"model": {"vocab": {"a": 1}}, "version": NaN}',
        '{"model": ["vocab", "merges"]}',
        '{"model": null, "added_tokens": []}',
        '["model"]',
        "{}",
    ],
)
def test_what_is_read_late_is_what_json_reads(content: str, tmp_path: Path) -> None:
    """Also what only Python takes for JSON, like half of a surrogate pair."""
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        found = TokenizerReader().load(file)
    wanted = json.loads(content)
    if isinstance(wanted, dict) and isinstance(wanted.get("model"), dict):
        model, parts = found["model"], wanted["model"]
        assert {name: model[name] for name in parts} == parts
        assert {name: model.get(name) for name in [*parts, "nothing"]} == {**parts, "nothing": None}
        del found["model"], wanted["model"]
    assert repr(found) == repr(wanted)


def test_a_tokenizer_that_cannot_be_read_is_the_converter_s_to_refuse(
    vendor: Path, tmp_path: Path
) -> None:
    model = a_checkpoint(tmp_path, small_qwen)
    (model / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(Exception, match=r"(?i)expecting|EOF|JSON"):
        convert_here(
            model, tmp_path / "ours.gguf", vendor=vendor, outtype="bf16", whole_tensors=False
        )
