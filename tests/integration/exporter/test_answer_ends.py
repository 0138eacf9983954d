"""Whether runtimes would stop where the adapter's answers stopped."""

import numpy as np
import pytest

from exporter.domain.gates import Distributions
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from exporter.engine.proof import Segment
from exporter.engine.templates import prove_end
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# The demo's model ends a turn with token 2.
END, WORD = 2, 40


def said(*answers: list[int]) -> list[Segment]:
    unknown = Distributions(ids=np.zeros((0, 1), np.int32), logprobs=np.zeros((0, 1), np.float32))
    prompt = [1, 50, 51]
    return [
        Segment(
            tokens=[*prompt, *answer],
            scored=[len(prompt) - 1 + index for index in range(len(answer))],
            adapter=unknown,
            base=unknown,
        )
        for answer in answers
    ]


@pytest.fixture
def model(engine: Engine) -> LlamaModel:
    base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    return LlamaModel(base.gguf, thread_count=1)


def test_an_end_that_the_file_does_not_know_is_refused(model: LlamaModel) -> None:
    with pytest.raises(Fault, match=f"token {WORD}") as caught:
        prove_end(model, said([60, 61, WORD], [62, WORD], [63, 64, WORD]))
    assert caught.value.code is FaultCode.EXPORT_TEMPLATE_MISMATCH


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([[WORD] * 24] * 4, id="one word for ever"),
        pytest.param([[60, WORD, 61, WORD], [62, 63, WORD], [64, 65, WORD]], id="a full stop"),
        pytest.param([[60, 61], [62, 63], [64, 65]], id="cut anywhere"),
        pytest.param([[60, WORD], [61, WORD]], id="too few to tell"),
    ],
)
def test_answers_that_were_cut_raise_no_false_alarm(
    answers: list[list[int]], model: LlamaModel
) -> None:
    assert prove_end(model, said(*answers)) is None


def test_the_shortest_answer_that_ended_is_asked_again(model: LlamaModel) -> None:
    """Whether it ends is said, and is no gate: an answer may also be long."""
    assert prove_end(model, said([60, 61, 62, END], [63, END])) is not None
