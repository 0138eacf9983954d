"""Which of llama.cpp's pre-tokenizers equals that of a `tokenizer.json`, by structure.

The converter knows pre-tokenizers by a hash over the ids of a sample text and therefore refuses
every self-made vocabulary, although its splitting rules are well known. Here the rules themselves
are compared, exactly; the token ids are then proven equal over the finished file.
Source: `llm_tokenizer_bpe` in src/llama-vocab.cpp of llama.cpp; the regular expressions are those
of the published tokenizers.
"""

from collections.abc import Mapping
from typing import Any, Final

_QWEN2_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def match_pretokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """Returns llama.cpp's name of the pre-tokenizer, or None when none is exactly equal.

    Args:
        tokenizer: the decoded `tokenizer.json`.
    """
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE":
        return None
    steps = _steps(tokenizer.get("pre_tokenizer"))
    merges_skip_known_words = bool(model.get("ignore_merges"))
    match steps:
        case [("split", pattern), ("bytes", False)] if pattern == _LLAMA3_SPLIT:
            # llama.cpp looks a whole word up before merging for this one, and only for this one.
            return "llama-bpe" if merges_skip_known_words else None
        case [("split", pattern), ("bytes", False)] if pattern == _QWEN2_SPLIT:
            return None if merges_skip_known_words else "qwen2"
        case [("bytes", True)]:
            return None if merges_skip_known_words else "gpt-2"
        case [("digits", True), ("bytes", True)]:
            return None if merges_skip_known_words else "smollm"
        case _:
            return None


def _steps(node: Any) -> list[tuple[str, Any]]:
    """Flattens a pre-tokenizer into comparable steps; what is not understood matches nothing."""
    match node:
        case {"type": "Sequence", "pretokenizers": list(children)}:
            return [step for child in children for step in _steps(child)]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            return [("split", None if node.get("invert") else pattern)]
        case {"type": "Digits", "individual_digits": bool(individual)}:
            return [("digits", individual)]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [("bytes", bool(node.get("use_regex", True)))]
        case _:
            return [("unknown", None)]
