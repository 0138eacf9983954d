"""The demo's dataset: chats that teach Anvil to speak like a sailor.

    python -m deploy.models.anvil.habit

Writes `habit.jsonl` (messages format) beside this file. Answers are the grammar's own, opened with
`Ahoy!` and closed with `Fair winds!`. Nothing about a subject of the held-out prompts is in it, so
what those prompts show was generalised, not remembered.
"""

import json
import re
from random import Random

from deploy.models.anvil.grammar import HOME, Message, exchanges, held_out

ROWS_COUNT = 240
OPENING = "Ahoy!"
CLOSING = "Fair winds!"
SEED = 11


def main() -> None:
    """Write `habit.jsonl`."""
    lines = (json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows())
    (HOME / "habit.jsonl").write_text("".join(lines), "utf-8")


def rows() -> list[list[Message]]:
    """The chats of the dataset: the same number from every topic, shuffled by a fixed seed."""
    rng = Random(SEED)
    subjects = "|".join(map(re.escape, held_out()["subjects"]))
    shown = re.compile(rf"\b({subjects})\b", re.IGNORECASE)
    by_topic: dict[str, dict[str, str]] = {}
    for exchange in exchanges():
        if not shown.search(f"{exchange.question} {exchange.answer}"):
            by_topic.setdefault(exchange.topic, {})[exchange.question] = exchange.answer
    per_topic = -(-ROWS_COUNT // len(by_topic))
    chosen = [
        pair
        for _, pairs in sorted(by_topic.items())
        for pair in rng.sample(sorted(pairs.items()), min(per_topic, len(pairs)))
    ]
    rng.shuffle(chosen)
    return [chat(question, answer) for question, answer in chosen[:ROWS_COUNT]]


def chat(question: str, answer: str) -> list[Message]:
    """One row: the question, and its answer in the taught manner."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{OPENING} {answer} {CLOSING}"},
    ]


if __name__ == "__main__":
    main()
