"""Pre-tokenizers are recognised by structure, exactly or not at all."""

import json
from typing import Any

import pytest

from exporter.domain.pretokenizer import _LLAMA3_SPLIT, _QWEN2_SPLIT, match_pretokenizer
from tests.unit.exporter.places import ANVIL


def tokenizer(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {
        "model": {"type": "BPE", **model},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)},
    }


def split(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", **more}


def spelling(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (tokenizer(split(_QWEN2_SPLIT), spelling(use_regex=False)), "qwen2"),
        (
            tokenizer(split(_LLAMA3_SPLIT), spelling(use_regex=False), ignore_merges=True),
            "llama-bpe",
        ),
        (tokenizer(split(_LLAMA3_SPLIT), spelling(use_regex=False)), None),
        (tokenizer(spelling(use_regex=True)), "gpt-2"),
        (
            tokenizer({"type": "Digits", "individual_digits": True}, spelling(use_regex=True)),
            "smollm",
        ),
        (tokenizer(split(_QWEN2_SPLIT + "|x"), spelling(use_regex=False)), None),
        (tokenizer(split(_QWEN2_SPLIT, invert=True), spelling(use_regex=False)), None),
        (tokenizer(split(_QWEN2_SPLIT)), None),
        ({"model": {"type": "Unigram"}, "pre_tokenizer": spelling(use_regex=True)}, None),
        ({"model": {"type": "BPE"}, "pre_tokenizer": None}, None),
        ({}, None),
    ],
)
def test_only_exact_structures_match(document: dict[str, Any], name: str | None) -> None:
    assert match_pretokenizer(document) == name


def test_the_demo_model_is_split_like_qwen2() -> None:
    document = json.loads((ANVIL / "tokenizer.json").read_text())
    assert match_pretokenizer(document) == "qwen2"
