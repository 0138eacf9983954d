"""Tokenizers as large as the catalog's, made by code: their pieces mean nothing.

Gemma's has 262,144 pieces and comes as a sentencepiece model and as a `tokenizer.json` of 30 MB
with half a million merges; Qwen's has 151,643 pieces over bytes beside its special tokens.
"""

import importlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

GEMMA_PIECES: Final = 262_144
GEMMA_UNUSED: Final = 6_242
QWEN_PIECES: Final = 151_643
QWEN_SPECIAL: Final = 26
QWEN_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GEMMA_TEMPLATE: Final = """\
{{ bos_token }}{% for message in messages -%}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
_SPACE: Final = "\u2581"
# Half of the real pieces are not Latin, and a few need more than 16 bits.
_SCRIPTS: Final = (
    "etaoinshrdlcumwfgypbvkjxqz", "абвгдежзиклмнопрстуя", "のいるにはしたと日本人大的是不了",
    "مناليةهر", "कानरमले", "가나다라마", "\U0001f600\U0001f680",
)  # fmt: skip
_PIECE_CHARACTERS: Final = 14


def write_gemma(folder: Path, *, pieces: int = GEMMA_PIECES, with_model: bool = True) -> None:
    """Writes a tokenizer of Gemma's kind and size into a checkpoint's or an adapter's folder.

    Args:
        with_model: also as `tokenizer.model`, which the converter prefers.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    special += [f"<unused{number}>" for number in range(min(GEMMA_UNUSED, pieces // 8))]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [_SPACE, *"".join(_SCRIPTS), *"0123456789.,?!'\"<>|-_"]
    first = len(special) + len(spelled)
    words, merges = _grown(letters, pieces - first, lead=_SPACE)
    known = [*special, *spelled, *words]
    assert len(known) == pieces
    (folder / "tokenizer.json").write_text(
        json.dumps(_gemma_document(known, special, merges), ensure_ascii=False, indent=2),
        encoding="utf-8",
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write_settings(folder, names | {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True})
    (folder / "chat_template.jinja").write_text(GEMMA_TEMPLATE, encoding="utf-8")
    if with_model:
        _write_sentencepiece(folder / "tokenizer.model", special, spelled, words)


def write_qwen(folder: Path, *, pieces: int = QWEN_PIECES) -> None:
    """Writes a tokenizer of Qwen's kind and size, with `vocab.json` and `merges.txt` beside it."""
    letters = list(_byte_letters())
    words, merges = _grown(letters, pieces, lead="Ġ")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += [f"<|special_{number}|>" for number in range(QWEN_SPECIAL - len(special))]
    known = dict(zip(words, range(pieces), strict=True))
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated"}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(pieces + number, text, special=number < QWEN_SPECIAL // 2)
            for number, text in enumerate(special)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**to_bytes, "use_regex": False}],
        },
        "post_processor": {**to_bytes, "use_regex": False},
        "decoder": {**to_bytes, "use_regex": False},
        "model": _bpe(known, merges),
    }
    (folder / "tokenizer.json").write_text(
        json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    (folder / "vocab.json").write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_settings(folder, names | {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None})


def _grown(
    letters: Sequence[str], count: int, *, lead: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in the order of their merging, letters first, and every way to merge each of them.

    Args:
        lead: stands for a space; only ever at a piece's start.
    """
    rng = random.Random(len(letters))
    words = list(dict.fromkeys(letters))
    kinds = [[word] for word in words if word != lead]
    scripts: list[list[str]] = [
        [word for (word,) in kinds[start : start + 20]] for start in range(0, len(kinds), 20)
    ]
    known = set(words)
    while len(words) < count:
        script = rng.choice(scripts)
        # Near the start of the list, where short pieces are, as in text.
        left, right = (script[int(len(script) * rng.random() ** 3)] for _ in range(2))
        if rng.random() < 0.3 and not left.startswith(lead):
            left = lead + left if lead + left in known else lead
        word = left + right
        if word in known or right.startswith(lead) or len(word) > _PIECE_CHARACTERS:
            continue
        words.append(word)
        known.add(word)
        script.append(word)
    pairs = ((word[:place], word[place:]) for word in words for place in range(1, len(word)))
    merges = [pair for pair in pairs if pair[0] in known and pair[1] in known]
    return words, merges


def _gemma_document(
    known: Sequence[str], special: Sequence[str], merges: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, text, special=True) for number, text in enumerate(special)],
        "normalizer": space,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, first],
            "pair": [begin, first, begin, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
        },
        "model": _bpe(
            dict(zip(known, range(len(known)), strict=True)), merges, unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        ),
    }  # fmt: skip


def _bpe(known: dict[str, int], merges: Sequence[tuple[str, str]], **changes: Any) -> Any:
    settings = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False,
    }  # fmt: skip
    return {**settings, **changes, "vocab": known, "merges": merges}


def _added(number: int, text: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": special,
    }  # fmt: skip


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    common = {"clean_up_tokenization_spaces": False, "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(common | settings), encoding="utf-8")


def _write_sentencepiece(
    path: Path, special: Sequence[str], spelled: Sequence[str], words: Sequence[str]
) -> None:
    # Its generated module has no types.
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = messages.ModelProto()
    kind = model.SentencePiece
    for text in special:
        model.pieces.add(
            piece=text, score=0.0, type=kind.UNKNOWN if text == "<unk>" else kind.CONTROL
        )
    for text in spelled:
        model.pieces.add(piece=text, score=0.0, type=kind.BYTE)
    for rank, text in enumerate(words):
        model.pieces.add(piece=text, score=-float(rank), type=kind.NORMAL)
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(model.pieces)
    trainer.byte_fallback = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = "<pad>", "<eos>", "<bos>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())


def _byte_letters() -> Sequence[str]:
    """The 256 bytes as GPT-2 spells them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(68)]
