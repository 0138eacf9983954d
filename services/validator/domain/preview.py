"""The first rows of the datasets as the trainer will see them: text, tokens, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from corpus.chat import ChatTemplate, Segment, about_row, is_refusal, trained_spans
from corpus.labels import Encoded, Tokenizer, encode, encode_kto, encode_preference
from corpus.samples import ChatSample, KtoSample, PreferenceSample, Sample, TextSample, to_sample
from corpus.shapes import Format
from lexicon.faults import Fault
from modelspec.recipe import TrainOn
from validator.domain.facts import LabelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """A row as it is stored, with its number from 1."""

    dataset: str
    data_format: Format
    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """A row as the trainer sees it; of two continuations the preferred one is shown.

    Attributes:
        trained_spans: character spans of `text` that are trained on.
    """

    dataset: str
    number: int
    text: str
    trained_spans: tuple[tuple[int, int], ...]
    token_count: int
    trained_token_count: int
    truncated: bool


def see_rows(
    rows: Sequence[RawRow],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    train_on: TrainOn,
) -> list[SeenRow]:
    """The rows with labelled tokens, encoded.

    Raises:
        Fault: DATASET_ROW_INVALID, DATASET_FIELD_MISSING, MODEL_CHAT_TEMPLATE_INVALID.
    """
    seen: list[SeenRow] = []
    for row in rows:
        sample = to_sample(row.values, row.data_format, row.number)
        if sample is None:
            continue
        try:
            encoded = _encoded(
                sample, template, tokenizer, max_tokens=max_tokens, train_on=train_on
            )
        except Fault as fault:
            if not is_refusal(fault):
                raise
            raise about_row(fault, row.dataset, row.number) from fault
        segments = _segments(sample, template, train_on=train_on)
        seen.append(
            SeenRow(
                dataset=row.dataset,
                number=row.number,
                text="".join(segment.text for segment in segments),
                trained_spans=tuple(trained_spans(segments)),
                token_count=sum(len(each.input_ids) for each in encoded),
                trained_token_count=sum(each.trained_token_count for each in encoded),
                truncated=any(each.truncated for each in encoded),
            )
        )
    return seen


def label_facts(rows: Sequence[SeenRow]) -> LabelFacts:
    """Figures of the encoded rows."""
    return LabelFacts(
        row_count=len(rows),
        token_count=sum(row.token_count for row in rows),
        trained_token_count=sum(row.trained_token_count for row in rows),
        unlearnt=tuple((row.dataset, row.number) for row in rows if not row.trained_token_count),
        truncated=tuple((row.dataset, row.number) for row in rows if row.truncated),
    )


def _encoded(
    sample: Sample,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    train_on: TrainOn,
) -> list[Encoded]:
    match sample:
        case ChatSample() | TextSample():
            return [encode(sample, template, tokenizer, max_tokens=max_tokens, train_on=train_on)]
        case PreferenceSample():
            pair = encode_preference(sample, template, tokenizer, max_tokens=max_tokens)
            return [pair.chosen, pair.rejected]
        case KtoSample():
            return [encode_kto(sample, template, tokenizer, max_tokens=max_tokens).completion]
        case _:
            assert_never(sample)


def _segments(sample: Sample, template: ChatTemplate, *, train_on: TrainOn) -> Sequence[Segment]:
    match sample:
        case TextSample(text=text):
            return [Segment(text=text, is_content=True, is_trained=True)]
        case ChatSample(messages=messages, trained_from=trained_from):
            segments = template.segments(messages, trained_from=trained_from)
        case PreferenceSample(prompt=prompt, chosen=chosen):
            return template.segments((*prompt, *chosen), trained_from=len(prompt))
        case KtoSample(prompt=prompt, completion=completion):
            return template.segments((*prompt, *completion), trained_from=len(prompt))
        case _:
            assert_never(sample)
    if train_on is TrainOn.ALL:
        whole = "".join(segment.text for segment in segments)
        return [Segment(text=whole, is_content=False, is_trained=True)]
    return segments
