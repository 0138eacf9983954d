"""Samples of a run: when they are due, and what a sound answer looks like.

They are made at checkpoints and count as training, as validation does: the clock runs from the
first step to the stored adapter. So their share of it has a bound that nobody has to set. A sound
answer is not empty, and has no raw template tokens and no endless repetition.
"""

import re
from collections.abc import Iterable

# A reader does not look more often; and a short run shows its samples at its end alone.
SECONDS_BETWEEN_MIN = 60.0
COST_SHARE_MAX = 0.02


def samples_due(*, seconds_since: float, cost_seconds: float) -> bool:
    """Whether a checkpoint is the place for samples.

    Args:
        seconds_since: since the last samples, or since the attempt began to train.
        cost_seconds: what the last samples took; 0 when there were none.
    """
    return seconds_since >= max(SECONDS_BETWEEN_MIN, cost_seconds / COST_SHARE_MAX)


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
