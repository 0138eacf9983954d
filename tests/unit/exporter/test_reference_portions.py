"""Which tokens of the trainer's reference a proof is measured over."""

import numpy as np
import pytest

from exporter.domain.gates import Distributions
from exporter.engine.proof import (
    SCORED_LEAST,
    Segment,
    portion,
    shortest_prompts,
)


def a_conversation(*, prompt: int, answer: int) -> Segment:
    """A conversation of so many tokens, each with a distribution over one token."""
    rows = Distributions(
        ids=np.zeros((answer, 1), np.int32), logprobs=np.zeros((answer, 1), np.float32)
    )
    return Segment(
        tokens=list(range(prompt + answer)),
        scored=list(range(prompt - 1, prompt + answer - 1)),
        adapter=rows,
        base=rows,
    )


def sizes(chosen: list[Segment]) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the answer of each conversation."""
    return [(len(one.prompt), len(one.scored)) for one in chosen]


def test_a_beginning_ends_with_the_token_after_its_last_scored_position() -> None:
    """Its distributions are those of the positions that are left."""
    one = a_conversation(prompt=4, answer=9).beginning(3)
    assert sizes([one]) == [(4, 3)]
    assert len(one.tokens) == 7
    assert len(one.adapter.ids) == len(one.base.ids) == 3
    assert one.targets == [4, 5, 6]


def test_a_portion_is_shared_by_all_conversations() -> None:
    """What a short conversation does not need goes to the longer ones."""
    few, many = a_conversation(prompt=4, answer=4), a_conversation(prompt=10, answer=90)
    assert sizes(portion([many, few], tokens=60)) == [(4, 4), (10, 42)]


def test_a_portion_of_long_prompts_has_answer_tokens_all_the_same() -> None:
    """A prompt that is longer than all tokens of the portion does not leave one row to judge by."""
    three = [a_conversation(prompt=length, answer=20) for length in (400, 300, 500)]
    assert sizes(portion(three, tokens=96)) == [(300, SCORED_LEAST)]


def test_prompts_that_leave_a_token_or_two_are_no_portion() -> None:
    """Three conversations with one answer token each say less than one that goes on."""
    three = [a_conversation(prompt=length, answer=20) for length in (31, 30, 31)]
    assert sizes(portion(three, tokens=96)) == [(30, 20), (31, 15)]


@pytest.mark.parametrize(
    ("tokens", "rows", "expected"),
    [
        (24, 64, [(6, 10), (7, 1)]),
        (40, 64, [(6, 10), (7, 17)]),
        (24, 5, [(6, 5)]),
        (8, 64, [(6, SCORED_LEAST)]),
        (1000, 64, [(6, 10), (7, 20), (9, 20)]),
    ],
)
def test_the_shortest_prompts_leave_most_answer_tokens(
    tokens: int, rows: int, expected: list[tuple[int, int]]
) -> None:
    """They come first, up to the limits of tokens and rows."""
    three = [
        a_conversation(prompt=9, answer=20),
        a_conversation(prompt=6, answer=10),
        a_conversation(prompt=7, answer=20),
    ]
    assert sizes(shortest_prompts(three, tokens=tokens, rows=rows)) == expected


def test_a_short_answer_is_measured_as_far_as_it_goes() -> None:
    """There are no more rows than the answer has tokens."""
    assert sizes(shortest_prompts([a_conversation(prompt=90, answer=3)], tokens=24, rows=64)) == [
        (90, 3)
    ]
