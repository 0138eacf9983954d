"""What a sound answer looks like: not empty, no raw template tokens, no endless repetition."""

import re
from collections.abc import Iterable

# Marks of the common chat templates, for models whose tokenizer does not declare them special.
TEMPLATE_MARKS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<|user|>",
    "<|assistant|>", "<|end|>", "### Instruction:", "### Response:",
)  # fmt: skip
REPEATED_WORDS_COUNT = 4
REPETITIONS_COUNT = 4


def flags(answer: str, *, special_tokens: Iterable[str]) -> tuple[str, ...]:
    """Everything suspicious about an answer, in words; empty when it is sound.

    Args:
        answer: text decoded with special tokens kept, its closing end token removed.
        special_tokens: what the tokenizer declares special.
    """
    found = [] if answer.strip() else ["empty answer"]
    marks = dict.fromkeys((*TEMPLATE_MARKS, *special_tokens))
    found.extend(f"raw template token {mark}" for mark in marks if mark and mark in answer)
    if _repeats(answer):
        found.append("repeats itself")
    return tuple(found)


def _repeats(answer: str) -> bool:
    words = re.findall(r"\S+", answer)
    size = REPEATED_WORDS_COUNT
    return any(
        words[start : start + size] * REPETITIONS_COUNT
        == words[start : start + size * REPETITIONS_COUNT]
        for start in range(len(words) - size * REPETITIONS_COUNT + 1)
    )
