"""The first rows as the trainer will see them."""

from pathlib import Path

import pytest

from corpus.chat import ChatTemplate
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import TrainOn
from tests.unit.corpus.tokenizer import byte_tokenizer
from validator import child
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


def test_a_tokenizer_that_cuts_shows_rows_whole(tmp_path: Path) -> None:
    """The preview counts what the trainer will see; `tokenizer.json` may hold a length."""
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    row = child.Row(
        dataset="projects/p/datasets/d",
        data_format=Format.INPUT_OUTPUT.value,
        number=1,
        values={"input": "Hi", "output": "a long answer " * 20},
    )
    job = child.Job(folder=str(tmp_path), rows=[row], max_tokens=1024, train_on="responses")
    (seen,) = child.run(job).rows
    assert seen.trained_token_count > 200
    assert not seen.truncated
