"""The first rows as the trainer will see them."""

import pytest

from corpus.chat import ChatTemplate
from corpus.labels import TrainOn
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from tests.unit.corpus.tokenizer import byte_tokenizer
from validator.domain.preview import RawRow, see_rows


def test_a_row_that_the_template_refuses_is_named() -> None:
    """001-25: whoever has ten thousand rows wants to know which one."""
    template = ChatTemplate.compile("{{ raise_exception('roles must alternate') }}")
    row = RawRow(
        dataset="projects/p/datasets/d",
        data_format=Format.INPUT_OUTPUT,
        number=7,
        values={"input": "Hi", "output": "Ho"},
    )
    with pytest.raises(Fault) as caught:
        see_rows([row], template, byte_tokenizer(), max_tokens=64, train_on=TrainOn.RESPONSES)
    assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID
    assert caught.value.message == (
        "Row 7 of projects/p/datasets/d: the chat template refuses the conversation: "
        "roles must alternate"
    )
