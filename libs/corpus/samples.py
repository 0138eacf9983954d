"""Each dataset format as one small transform into one of four sample types."""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from corpus.rows import iterate_rows
from corpus.shapes import Format, truth
from lexicon.faults import Fault, FaultCode
from lexicon.names import quoted

MAX_MESSAGE_COUNT = 4096


class Role(enum.StrEnum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSample:
    """A conversation. Assistant turns before `trained_from` are context and never trained on."""

    messages: tuple[Message, ...]
    trained_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSample:
    """Plain text, all of it trained on."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSample:
    """Two continuations of one prompt, the first preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoSample:
    """One continuation of a prompt that is desirable or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool


Sample = ChatSample | TextSample | PreferenceSample | KtoSample

_ROLES = {
    "assistant": Role.ASSISTANT,
    "bard": Role.ASSISTANT,
    "bing": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "developer": Role.SYSTEM,
    "function": Role.TOOL,
    "gpt": Role.ASSISTANT,
    "human": Role.USER,
    "model": Role.ASSISTANT,
    "system": Role.SYSTEM,
    "tool": Role.TOOL,
    "user": Role.USER,
}


def iterate_samples(path: Path, data_format: Format) -> Iterator[tuple[int, Sample]]:
    """Samples of an inspected file with their row numbers; rows with nothing to learn are left out.

    Raises:
        Fault: DATASET_ROW_INVALID and DATASET_FILE_INVALID as in `to_sample` and `iterate_rows`.
    """
    for number, row in iterate_rows(path):
        sample = to_sample(row, data_format, number)
        if sample is not None:
            yield number, sample


def to_sample(row: Mapping[str, Any], data_format: Format, row_number: int) -> Sample | None:
    """A row as a sample; None when it holds nothing to learn, such as a blank answer.

    Raises:
        Fault: DATASET_FIELD_MISSING or DATASET_ROW_INVALID, both with the row's number.
    """
    return _TRANSFORMS[data_format](_Row(values=row, number=row_number))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A raw row that knows its number, for errors."""

    values: Mapping[str, Any]
    number: int

    def refuse(self, what: str) -> NoReturn:
        raise Fault(
            FaultCode.DATASET_ROW_INVALID, f"Dataset row {self.number}: {what}", row=self.number
        )

    def get(self, field: str) -> object:
        value = self.values.get(field)
        if value is None:
            raise Fault(
                FaultCode.DATASET_FIELD_MISSING,
                f"Dataset row {self.number} missing required field '{field}'",
                row=self.number,
                field=field,
            )
        return value

    def text(self, field: str) -> str:
        return self.clean(self.get(field), field)

    def clean(self, value: object, field: str) -> str:
        """The value as text that can be encoded as UTF-8."""
        if not isinstance(value, str):
            self.refuse(f"'{field}' is a {type(value).__name__}, not a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(f"'{field}' holds half of a surrogate pair, which is no character")
        return value

    def turns(self, field: str, *, speaker: Role) -> tuple[Message, ...]:
        """A field that is a list of messages, or one text that `speaker` says."""
        value = self.get(field)
        if isinstance(value, list):
            return self.messages(value, field, role_key="role", content_key="content")
        return (Message(role=speaker, content=self.clean(value, field)),)

    def messages(
        self, items: Sequence[Any], field: str, *, role_key: str, content_key: str
    ) -> tuple[Message, ...]:
        if len(items) > MAX_MESSAGE_COUNT:
            self.refuse(f"'{field}' has {len(items)} messages; at most {MAX_MESSAGE_COUNT}")
        return tuple(
            self._message(item, f"{field}[{index}]", role_key=role_key, content_key=content_key)
            for index, item in enumerate(items)
        )

    def _message(self, item: object, place: str, *, role_key: str, content_key: str) -> Message:
        if not isinstance(item, dict):
            self.refuse(f"'{place}' is not an object with '{role_key}' and '{content_key}'")
        role = _ROLES.get(str(item.get(role_key)).lower())
        if role is None:
            self.refuse(f"'{place}' has the unknown {role_key} {quoted(item.get(role_key))}")
        content = item.get(content_key)
        if isinstance(content, list):
            content = self._joined_parts(content, place)
        if content is None:
            self.refuse(f"'{place}' has no '{content_key}'; tool calls cannot be trained on")
        return Message(role=role, content=self.clean(content, f"{place}.{content_key}"))

    def _joined_parts(self, parts: list[Any], place: str) -> str:
        """Content given as parts; only text can be trained on."""
        texts: list[str] = []
        for part in parts:
            if not isinstance(part, dict) or part.get("type", "text") != "text":
                self.refuse(f"'{place}' has a part that is not text")
            texts.append(self.clean(part.get("text"), place))
        return "".join(texts)


def _from_messages(row: _Row) -> ChatSample | None:
    return _chat(_listed(row, "messages", role_key="role", content_key="content"))


def _from_conversations(row: _Row) -> ChatSample | None:
    return _chat(_listed(row, "conversations", role_key="from", content_key="value"))


def _listed(row: _Row, field: str, *, role_key: str, content_key: str) -> tuple[Message, ...]:
    items = row.get(field)
    if not isinstance(items, list):
        row.refuse(f"'{field}' is not a list")
    return row.messages(items, field, role_key=role_key, content_key=content_key)


def _from_instruction(row: _Row) -> ChatSample | None:
    question = row.text("instruction")
    if row.values.get("input") is not None:
        detail = row.text("input")
        question = f"{question}\n\n{detail}" if detail.strip() else question
    return _chat(_exchange(question, row.text("output")))


def _from_prompt_completion(row: _Row) -> ChatSample | None:
    prompt = row.turns("prompt", speaker=Role.USER)
    return _chat(prompt + row.turns("completion", speaker=Role.ASSISTANT), trained_from=len(prompt))


def _from_input_output(row: _Row) -> ChatSample | None:
    return _chat(_exchange(row.text("input"), row.text("output")))


def _from_text(row: _Row) -> TextSample | None:
    text = row.text("text")
    return TextSample(text=text) if text.strip() else None


def _from_preference(row: _Row) -> PreferenceSample | None:
    chosen = row.turns("chosen", speaker=Role.ASSISTANT)
    rejected = row.turns("rejected", speaker=Role.ASSISTANT)
    if row.values.get("prompt") is not None and not _repeats_prompt(row, chosen):
        prompt = row.turns("prompt", speaker=Role.USER)
    else:
        prompt = _shared_prefix(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt:
            row.get("prompt")
            row.refuse("'chosen' and 'rejected' do not begin with the same prompt")
    if not (_is_answer(chosen) and _is_answer(rejected)):
        return None
    return PreferenceSample(prompt=prompt, chosen=chosen, rejected=rejected)


def _repeats_prompt(row: _Row, chosen: Sequence[Message]) -> bool:
    """Whether `chosen` is the whole conversation, beginning with the prompt."""
    return (
        isinstance(row.values.get("chosen"), list)
        and chosen[:1] != ()
        and (chosen[0].role is not Role.ASSISTANT)
    )


def _shared_prefix(left: Sequence[Message], right: Sequence[Message]) -> tuple[Message, ...]:
    prefix: list[Message] = []
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        prefix.append(one)
    return tuple(prefix)


def _from_kto(row: _Row) -> KtoSample | None:
    desirable = truth(row.get("label"))
    if desirable is None:
        row.refuse(
            f"'label' is {quoted(row.get('label'))}, neither true nor false; a prompt with a "
            "completion and a label is KTO data: rename the column if it is no verdict"
        )
    completion = row.turns("completion", speaker=Role.ASSISTANT)
    if not _is_answer(completion):
        return None
    return KtoSample(
        prompt=row.turns("prompt", speaker=Role.USER), completion=completion, desirable=desirable
    )


def _exchange(question: str, answer: str) -> tuple[Message, ...]:
    return (
        Message(role=Role.USER, content=question),
        Message(role=Role.ASSISTANT, content=answer),
    )


def _chat(messages: tuple[Message, ...], *, trained_from: int = 0) -> ChatSample | None:
    """A conversation up to its last answer; what follows would be read but never learnt from."""
    for end in range(len(messages), trained_from, -1):
        if _is_answer(messages[end - 1 : end]):
            return ChatSample(messages=messages[:end], trained_from=trained_from)
    return None


def _is_answer(messages: Sequence[Message]) -> bool:
    return bool(messages) and (
        messages[-1].role is Role.ASSISTANT and messages[-1].content.strip() != ""
    )


_TRANSFORMS: dict[Format, Callable[[_Row], Sample | None]] = {
    Format.MESSAGES: _from_messages,
    Format.CONVERSATIONS: _from_conversations,
    Format.INSTRUCTION: _from_instruction,
    Format.PROMPT_COMPLETION: _from_prompt_completion,
    Format.INPUT_OUTPUT: _from_input_output,
    Format.TEXT: _from_text,
    Format.PREFERENCE: _from_preference,
    Format.KTO: _from_kto,
}
