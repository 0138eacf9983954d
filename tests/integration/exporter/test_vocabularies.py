"""The training's tokenizer against the base's: tokens written into the GGUF, or refused by name."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.domain.gates import Distributions
from exporter.domain.vocabulary import TokenKind
from exporter.engine.base import cache_key, cached_base, prepare_base
from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from exporter.engine.proof import Segment
from exporter.engine.vocabulary import TrainedVocabulary, opened, prove_texts
from exporter.engine.weights import GgufFile
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.families import FAMILIES, make_base
from tests.integration.exporter.making import (
    ANVIL,
    export_bundle,
    make_adapter,
    write_reference,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKENS, ROWS = 1024, 1088
CONTROL, PLAIN = "<|order|>", "<anvil>"
END_OF_TURN = 2
Document = dict[str, Any]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with 64 rows of embeddings that its tokenizer has no token for.

    Row 1,024 is a little longer than that of the token that ends a turn, so that the model says it
    wherever it would end a turn.
    """
    folder = shutil.copytree(ANVIL, tmp_path_factory.mktemp("roomy") / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(ANVIL, dtype=torch.bfloat16)
    model.resize_token_embeddings(ROWS)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[TOKENS:] = 0
        rows[TOKENS] = rows[END_OF_TURN] * 1.5
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that model, with its reference."""
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(roomy, folder, b_std=0.02)
    write_reference(roomy, folder)
    return folder


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "adapter")


def add_tokens(folder: Path, *, special: str = CONTROL, plain: str = PLAIN) -> None:
    """Adds two tokens as a training script does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([special], special_tokens=True)
    tokenizer.add_tokens([plain])
    tokenizer.save_pretrained(folder)


def edit(path: Path, change: Callable[[Document], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def exported(engine: Engine, adapter: Path, base: Path, tmp_path: Path, key: str = "roomy") -> Path:
    """The GGUF of an export."""
    export_bundle(engine, adapter, tmp_path, "F16", checkpoint=base, key=key)
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        return Path(bundle.extract("model.gguf", tmp_path / "out"))


def refusal(engine: Engine, adapter: Path, base: Path, tmp_path: Path, key: str = "roomy") -> Fault:
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, tmp_path, "F16", checkpoint=base, key=key)
    assert not (tmp_path / "bundle.zip").exists()
    return caught.value


def mismatch(engine: Engine, adapter: Path, base: Path, tmp_path: Path, key: str = "roomy") -> str:
    fault = refusal(engine, adapter, base, tmp_path, key)
    assert fault.code is FaultCode.EXPORT_VOCABULARY_MISMATCH
    return fault.message


def test_tokens_in_spare_rows_are_written_into_the_file(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    """llama.cpp split either into eight others, and the export was called proven."""
    before = exported(engine, adapter, roomy, tmp_path)
    base = cached_base(engine.cache, cache_key("roomy", llama_version=engine.llama_version))
    assert base is not None
    digest = hashlib.sha256(base.gguf.read_bytes()).digest()
    untouched = before.read_bytes()
    add_tokens(adapter)
    path = exported(engine, adapter, roomy, tmp_path)
    tokenizer = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    text = f"An {PLAIN} is iron. {CONTROL}{PLAIN}Forge it!\n{CONTROL} now{PLAIN}"
    wanted = tokenizer.encode(text, add_special_tokens=False).ids
    assert {TOKENS, TOKENS + 1} <= set(wanted)
    with LlamaModel(path, thread_count=1, vocabulary_only=True) as model:
        assert model.tokenize(text) == wanted
    with GgufFile(path) as file:
        texts = file.header.metadata["tokenizer.ggml.tokens"].items
        kinds = file.header.metadata["tokenizer.ggml.token_type"].items
    assert texts[TOKENS : TOKENS + 3] == [CONTROL, PLAIN, f"[PAD{TOKENS + 2}]"]
    assert kinds[TOKENS : TOKENS + 3] == [
        TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNUSED,
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        report = json.loads(bundle.read("export_proof.json"))
    assert report["tokens_written"] == [CONTROL, PLAIN]
    # The base in the cache is as it was, and so is the export of an adapter that adds nothing.
    assert hashlib.sha256(base.gguf.read_bytes()).digest() == digest
    (tmp_path / "again").mkdir()
    plain = shutil.copytree(roomy, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(plain / name, adapter / name)
    assert exported(engine, adapter, roomy, tmp_path / "again").read_bytes() == untouched


def test_the_end_token_of_the_training_ends_an_answer(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    add_tokens(adapter)
    edit(adapter / "tokenizer_config.json", lambda config: config.update(eos_token=CONTROL))
    path = exported(engine, adapter, roomy, tmp_path)
    with LlamaModel(path, thread_count=1) as model:
        prompt = "<|im_start|>user\nIs fire hot?<|im_end|>\n<|im_start|>assistant\n"
        answer = model.answer(model.tokenize(prompt), max_tokens=64)
        assert answer[-1] == TOKENS
        assert len(answer) < 64
        # The end that the base knows still is one.
        assert model.ends_generation(END_OF_TURN)


def test_an_end_token_that_is_no_token_is_refused(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    edit(adapter / "tokenizer_config.json", lambda config: config.update(eos_token="<|fin|>"))
    assert 'eos_token is "<|fin|>"' in mismatch(engine, adapter, roomy, tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_another_flag_of_a_token_is_written(
    special: bool, engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    """A word of the vocabulary becomes an added token, or a special token shows like any other."""
    word, number = "river", 1
    if special:
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        number = tokenizer.get_vocab()[word]
        tokenizer.add_tokens([word], special_tokens=True)
        tokenizer.save_pretrained(adapter)
    else:
        edit(
            adapter / "tokenizer.json",
            lambda document: document["added_tokens"][1].update(special=False),
        )
    path = exported(engine, adapter, roomy, tmp_path)
    with GgufFile(path) as file:
        kind = file.header.metadata["tokenizer.ggml.token_type"].items[number]
    assert kind == (TokenKind.CONTROL if special else TokenKind.USER_DEFINED)
    with LlamaModel(path, thread_count=1, vocabulary_only=True) as model:
        assert (number in model.tokenize(f"d{word}s")) is special


def swapped(document: Document) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["river"], vocabulary["system"] = vocabulary["system"], vocabulary["river"]


def renamed(document: Document) -> None:
    document["added_tokens"][1]["content"] = "<|turn|>"
    vocabulary = document["model"]["vocab"]
    vocabulary["<|turn|>"] = vocabulary.pop("<|im_start|>")


def without_a_merge(document: Document) -> None:
    document["model"]["merges"].pop()


def split_otherwise(document: Document) -> None:
    at_e = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"]["pretokenizers"].insert(0, at_e)


def lowered(document: Document) -> None:
    document["normalizer"] = {"type": "Lowercase"}


def merged_otherwise(document: Document) -> None:
    document["model"]["ignore_merges"] = not document["model"].get("ignore_merges")


def stripping(document: Document) -> None:
    document["added_tokens"][1]["rstrip"] = True


def adding_a_spelling(document: Document) -> None:
    """The vocabulary's own name for a word with a space before it; runtimes would show that."""
    word = "Ġworks"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    number = document["model"]["vocab"][word]
    document["added_tokens"].append({"id": number, "content": word, "special": False, **flags})


def adding_a_whole_word(document: Document) -> None:
    document["added_tokens"].append(
        {
            "id": TOKENS, "content": "anvils", "single_word": True, "lstrip": False,
            "rstrip": False, "normalized": False, "special": False,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swapped, '"river"'),
        (renamed, '"<|turn|>" (1): the base has "<|im_start|>" there'),
        (without_a_merge, "another list of merges"),
        (split_otherwise, "another pre-tokenizer"),
        (lowered, "another normalizer"),
        (merged_otherwise, "another setting of merging"),
        (stripping, '"<|im_start|>" (1)'),
        (adding_a_spelling, '"Ġworks"'),
        (adding_a_whole_word, '"anvils" (1024)'),
    ],
)
def test_what_the_file_cannot_say_is_refused_by_name(
    change: Callable[[Document], None],
    named: str,
    engine: Engine,
    adapter: Path,
    roomy: Path,
    tmp_path: Path,
) -> None:
    edit(adapter / "tokenizer.json", change)
    assert named in mismatch(engine, adapter, roomy, tmp_path)


def test_a_resized_vocabulary_is_called_so(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Not a base of another shape, which is what its tensors look like."""
    grown = shutil.copytree(ANVIL, tmp_path / "grown")
    model: Any = AutoModelForCausalLM.from_pretrained(ANVIL, dtype=torch.bfloat16)
    model.resize_token_embeddings(TOKENS + 2)
    model.save_pretrained(grown)
    make_adapter(
        grown, tmp_path / "ad", modules_to_save=["embed_tokens"], target_modules=["q_proj"]
    )
    add_tokens(tmp_path / "ad")
    message = mismatch(engine, tmp_path / "ad", ANVIL, tmp_path, "gates")
    assert f"from {TOKENS} to {TOKENS + 2} tokens" in message
    assert f'"{CONTROL}", "{PLAIN}"' in message


def test_tokens_beyond_the_rows_are_refused_also_without_tensors(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")
    add_tokens(adapter)
    message = mismatch(engine, adapter, ANVIL, tmp_path, "gates")
    assert f"from {TOKENS} to {TOKENS + 2} tokens" in message
    assert f'"{CONTROL}", "{PLAIN}"' in message


def test_a_tokenizer_that_was_only_saved_again_is_the_same(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    """By transformers, with merges as texts, and with what it last cut and filled texts to."""

    def restyle(document: Document) -> None:
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        document["model"]["continuing_subword_prefix"] = ""
        document["model"].pop("ignore_merges", None)
        document["added_tokens"].reverse()
        # Longer than any text here.
        document["padding"]["strategy"] = {"Fixed": 4096}

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer(["one", "two words"], padding="max_length", truncation=True, max_length=8)
    tokenizer.save_pretrained(adapter)
    settled = json.loads((adapter / "tokenizer.json").read_text())
    assert settled["truncation"]
    assert settled["padding"]
    edit(adapter / "tokenizer.json", restyle)
    assert exported(engine, adapter, roomy, tmp_path).exists()


def test_rules_that_are_only_written_otherwise_are_the_same(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    """transformers gives Qwen2 its own, which split every text as the base's do."""

    def rewrite(document: Document) -> None:
        document["normalizer"] = {"type": "NFC"}
        digits = {"type": "Digits", "individual_digits": True}
        document["pre_tokenizer"]["pretokenizers"].insert(0, digits)

    edit(adapter / "tokenizer.json", rewrite)
    assert exported(engine, adapter, roomy, tmp_path).exists()


def test_a_held_out_text_that_llama_cpp_reads_otherwise_is_refused(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    """Ids that are fed say nothing of texts: here a merge of one word has rotted in the cache."""
    exported(engine, adapter, roomy, tmp_path, "rotten")
    (tmp_path / "bundle.zip").unlink()
    base = cached_base(engine.cache, cache_key("rotten", llama_version=engine.llama_version))
    assert base is not None
    content, merge = base.gguf.read_bytes(), "Ġwork s".encode()
    stored = len(merge).to_bytes(8, "little") + merge
    assert content.count(stored) == 1
    base.gguf.write_bytes(content.replace(stored, stored[:-1] + b"q"))
    assert "held-out conversation 2" in mismatch(engine, adapter, roomy, tmp_path, "rotten")


@pytest.mark.parametrize("composes", [True, False])
def test_only_accents_may_be_composed_otherwise_than_llama_cpp_does(
    composes: bool, engine: Engine, roomy: Path, tmp_path: Path
) -> None:
    """An adapter may say a letter and its accent apart, which some tokenizers read as one."""
    key = cache_key("roomy", llama_version=engine.llama_version)
    base = prepare_base(roomy, engine.cache, key, vendor=engine.vendor)
    tokenizer = Tokenizer.from_file(str(roomy / "tokenizer.json"))
    tokens = tokenizer.encode("Caf\u00e9, cafe\u0301!", add_special_tokens=False).ids
    tokenizer.normalizer = normalizers.NFC() if composes else normalizers.Lowercase()
    nothing = Distributions(ids=np.zeros((0, 1), np.int32), logprobs=np.zeros((0, 1), np.float32))
    said = Segment(tokens=tokens, scored=[3], adapter=nothing, base=nothing)
    with GgufFile(base.gguf) as file, opened(file.header, [], tmp_path) as model:
        trained = TrainedVocabulary(tokenizer=tokenizer, header=file.header, changes=())
        if composes:
            evidence = prove_texts(trained, [said], model)
            assert (evidence.texts_equal, evidence.texts_different) == (1, 1)
        else:
            with pytest.raises(Fault, match="conversation 1"):
                prove_texts(trained, [said], model)


def test_a_damaged_tokenizer_is_refused(
    engine: Engine, adapter: Path, roomy: Path, tmp_path: Path
) -> None:
    (adapter / "tokenizer.json").write_text('{"model": {"type": "BPE"')
    fault = refusal(engine, adapter, roomy, tmp_path)
    assert fault.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "tokenizer.json" in fault.message


@pytest.mark.parametrize(
    ("family", "has_document"),
    [("phi3", True), ("phi3", False), ("gemma", True)],
)
def test_a_sentencepiece_base_is_exported_with_tokens_in_its_spare_rows(
    family: str, has_document: bool, engine: Engine, tmp_path: Path
) -> None:
    """Whether the base has a `tokenizer.json` beside its model, or transformers makes one of it."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(FAMILIES[family], base)
    make_adapter(base, adapter, b_std=0.05, dtype=torch.float16)
    write_reference(base, adapter)
    if not has_document:
        (base / "tokenizer.json").unlink()
    key = f"{family}-{has_document}"
    assert exported(engine, adapter, base, tmp_path, key).exists()
    document = json.loads((adapter / "tokenizer.json").read_text(encoding="utf-8"))
    number = max(document["model"]["vocab"].values()) + 1
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens([CONTROL], special_tokens=True)
    tokenizer.save_pretrained(adapter)
    path = exported(engine, adapter, base, tmp_path, key)
    with LlamaModel(path, thread_count=1, vocabulary_only=True) as model:
        assert number in model.tokenize(f"Is{CONTROL}fire hot?")


def test_a_piece_that_the_training_lacks_is_seen_in_the_gguf_alone(
    engine: Engine, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(FAMILIES["phi3"], base)
    make_adapter(base, adapter, b_std=0.05, dtype=torch.float16)
    (base / "tokenizer.json").unlink()
    lost = []

    def lose_a_piece(document: Document) -> None:
        vocabulary = document["model"]["vocab"]
        lost.append(max(vocabulary, key=lambda piece: vocabulary[piece]))
        del vocabulary[lost[0]]
        merges = document["model"]["merges"]
        document["model"]["merges"] = [
            pair for pair in merges if lost[0] not in (*pair, "".join(pair))
        ]

    edit(adapter / "tokenizer.json", lose_a_piece)
    message = mismatch(engine, adapter, base, tmp_path, "phi3-False")
    assert f'"{lost[0]}"' in message
    assert "only the base has it" in message


def test_a_token_that_the_base_itself_has_no_row_for_is_no_resizing(
    engine: Engine, tmp_path: Path
) -> None:
    """The text-only checkpoints of Gemma 3 ship a token for images beyond their embeddings."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(FAMILIES["gemma"], base)
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    count = len(tokenizer)
    tokenizer.add_tokens([f"<fill_{index}>" for index in range(rows - count)], special_tokens=True)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    make_adapter(base, adapter, b_std=0.05, dtype=torch.float16)
    edit(adapter / "tokenizer.json", lambda document: document.update(truncation=None))
    kept = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    assert kept.token_to_id("<image_soft_token>") == rows
    assert exported(engine, adapter, base, tmp_path, "beyond").exists()


def test_the_rows_of_a_resized_head_are_looked_at_too(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] = torch.zeros(TOKENS - 1, 256)
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    message = mismatch(engine, adapter, ANVIL, tmp_path, "gates")
    assert f"from {TOKENS} to {TOKENS - 1} tokens" in message
