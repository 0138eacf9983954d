"""Samples as token ids with labels; -100 marks what is read but not learnt.

A token is trained on when it carries text of a trained segment. A special token that is in the
words of a message is encoded as text: nobody can speak in another role by writing its mark.
"""

import functools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from corpus.chat import ChatTemplate, Segment
from corpus.samples import ChatSample, KtoSample, Message, PreferenceSample, TextSample
from modelspec.recipe import TrainOn

IGNORED_LABEL = -100

Tokens = npt.NDArray[np.int32]


class Encoding(Protocol):
    """Ids with the characters they came from."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class AddedToken(Protocol):
    """A token outside the learnt vocabulary."""

    @property
    def content(self) -> str: ...
    @property
    def special(self) -> bool: ...


class Tokenizer(Hashable, Protocol):
    """The part of `tokenizers.Tokenizer` that is needed; offsets count characters."""

    encode_special_tokens: bool

    def encode(
        self,
        sequence: str,
        pair: None = None,
        is_pretokenized: bool = False,
        add_special_tokens: bool = True,
    ) -> Encoding: ...
    def token_to_id(self, token: str) -> int | None: ...
    def get_added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...


class Bounded(Protocol):
    """A tokenizer that may cut or fill what it encodes: `tokenizers.Tokenizer`."""

    def no_truncation(self) -> None: ...
    def no_padding(self) -> None: ...


_Bounded = TypeVar("_Bounded", bound=Bounded)


def unbounded(tokenizer: _Bounded) -> _Bounded:
    """The same tokenizer, which then encodes every text whole and adds nothing.

    transformers stores the settings of its last call in `tokenizer.json`, and sets its own at each
    call; the library itself obeys the file, and cuts a long text without a word.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """One example: ids and labels of equal length."""

    input_ids: Tokens
    labels: Tokens
    truncated: bool

    @property
    def trained_token_count(self) -> int:
        """Tokens that are learnt: labelled, with a token before them to predict them from."""
        return int((self.labels[1:] != IGNORED_LABEL).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPreference:
    """Prompt with the preferred and with the other continuation."""

    chosen: Encoded
    rejected: Encoded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedKto:
    """Prompt with a continuation that is desirable or not."""

    completion: Encoded
    desirable: bool


def encode(
    sample: ChatSample | TextSample,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    train_on: TrainOn = TrainOn.RESPONSES,
) -> Encoded:
    """One example, cut after `max_tokens` tokens.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID.
    """
    if isinstance(sample, TextSample):
        return _encode_text(sample, template, tokenizer, max_tokens=max_tokens)
    segments = template.segments(sample.messages, trained_from=sample.trained_from)
    return encode_segments(segments, tokenizer, max_tokens=max_tokens, train_on=train_on)


def encode_preference(
    sample: PreferenceSample, template: ChatTemplate, tokenizer: Tokenizer, *, max_tokens: int
) -> EncodedPreference:
    """Both continuations; only their own words carry labels.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID.
    """
    return EncodedPreference(
        chosen=_encode_answer(
            sample.prompt, sample.chosen, template, tokenizer, max_tokens=max_tokens
        ),
        rejected=_encode_answer(
            sample.prompt, sample.rejected, template, tokenizer, max_tokens=max_tokens
        ),
    )


def encode_kto(
    sample: KtoSample, template: ChatTemplate, tokenizer: Tokenizer, *, max_tokens: int
) -> EncodedKto:
    """The continuation with its verdict.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID.
    """
    return EncodedKto(
        completion=_encode_answer(
            sample.prompt, sample.completion, template, tokenizer, max_tokens=max_tokens
        ),
        desirable=sample.desirable,
    )


def encode_prompt(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer
) -> list[int]:
    """Ids of a conversation that the assistant is to continue.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID.
    """
    segments = template.prompt_segments(messages)
    return [token for token, _, _ in _tokens(segments, tokenizer)]


def encode_segments(
    segments: Sequence[Segment], tokenizer: Tokenizer, *, max_tokens: int, train_on: TrainOn
) -> Encoded:
    """Ids of the joined segments, with labels on the trained ones or on all."""
    text = "".join(segment.text for segment in segments)
    trained = _map(segments, [segment.is_trained for segment in segments])
    ids: list[int] = []
    labels: list[int] = []
    for token, start, end in _tokens(segments, tokenizer):
        learnt = train_on is TrainOn.ALL or _is_trained(text, trained, start, end)
        ids.append(token)
        labels.append(token if learnt else IGNORED_LABEL)
    return _encoded(ids, labels, max_tokens=max_tokens)


def _encode_answer(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
) -> Encoded:
    segments = template.segments((*prompt, *answer), trained_from=len(prompt))
    return encode_segments(segments, tokenizer, max_tokens=max_tokens, train_on=TrainOn.RESPONSES)


def _encode_text(
    sample: TextSample, template: ChatTemplate, tokenizer: Tokenizer, *, max_tokens: int
) -> Encoded:
    """Plain text between the marks that the tokenizer puts around a text."""
    segments = [_segment(sample.text, is_content=True)]
    ids = [token for token, _, _ in _tokens(segments, tokenizer)]
    opening = tokenizer.encode("", add_special_tokens=True).ids
    bos = template.tokens.get("bos_token")
    if opening and bos is not None and opening[0] == tokenizer.token_to_id(bos):
        ids.insert(0, opening[0])
    end = tokenizer.token_to_id(template.eos_token) if template.eos_token else None
    if end is not None:
        ids.append(end)
    return _encoded(ids, list(ids), max_tokens=max_tokens)


def _encoded(ids: Sequence[int], labels: Sequence[int], *, max_tokens: int) -> Encoded:
    return Encoded(
        input_ids=np.asarray(ids[:max_tokens], dtype=np.int32),
        labels=np.asarray(labels[:max_tokens], dtype=np.int32),
        truncated=len(ids) > max_tokens,
    )


def _tokens(segments: Sequence[Segment], tokenizer: Tokenizer) -> Iterator[tuple[int, int, int]]:
    """(id, first character, end character) of the joined text.

    The text is encoded as a whole, as it is when the model is used, and cut only around a special
    token that is in the text of a message.
    """
    position = 0
    for text, is_literal in _chunks(segments, _specials(tokenizer)):
        encoding = _encode_literal(text, tokenizer) if is_literal else _encode(text, tokenizer)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, position + start, position + end
        position += len(text)


def _encode(text: str, tokenizer: Tokenizer) -> Encoding:
    return tokenizer.encode(text, add_special_tokens=False)


def _encode_literal(text: str, tokenizer: Tokenizer) -> Encoding:
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return _encode(text, tokenizer)
    finally:
        tokenizer.encode_special_tokens = before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Specials:
    """Special tokens in a shape that finds them fast."""

    texts: frozenset[str]
    lengths: tuple[int, ...]
    beginnings: re.Pattern[str]


@functools.lru_cache(maxsize=4)
def _specials(tokenizer: Tokenizer) -> _Specials | None:
    texts = frozenset(
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special and token.content
    )
    if not texts:
        return None
    first = "".join(sorted({re.escape(text[0]) for text in texts}))
    return _Specials(
        texts=texts,
        lengths=tuple(sorted({len(text) for text in texts}, reverse=True)),
        beginnings=re.compile(f"[{first}]"),
    )


def _chunks(segments: Sequence[Segment], specials: _Specials | None) -> Iterator[tuple[str, bool]]:
    """The joined text in chunks, each with whether it is a special token made of users' words."""
    text = "".join(segment.text for segment in segments)
    begin = 0
    if specials is not None:
        written = _map(segments, [segment.is_content for segment in segments])
        for match in specials.beginnings.finditer(text):
            start = match.start()
            if start < begin:
                continue
            end = next(
                (
                    start + size
                    for size in specials.lengths
                    if text[start : start + size] in specials.texts
                ),
                start,
            )
            if written[start:end].any():
                if start > begin:
                    yield text[begin:start], False
                yield text[start:end], True
                begin = end
    if begin < len(text):
        yield text[begin:], False


def _map(segments: Sequence[Segment], flags: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """One flag for each character of the joined text."""
    lengths = [len(segment.text) for segment in segments]
    return np.repeat(np.array(flags, dtype=np.bool_), lengths)


def _is_trained(text: str, trained: npt.NDArray[np.bool_], start: int, end: int) -> bool:
    """Whether a token carries trained text; blanks before it may ride in the same token."""
    covered = trained[start:end]
    if not covered.any():
        return False
    first = start + int(covered.argmax())
    return text[start:first].strip() == ""


def _segment(text: str, *, is_content: bool) -> Segment:
    return Segment(text=text, is_content=is_content, is_trained=False)
