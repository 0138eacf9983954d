"""Chat templates: loading, rendering, and which characters of a rendering are whose.

The text of every message is found in the rendering, so that a special token inside it is
distinguished from one that the template wrote, and so that labels sit exactly on what the assistant
says.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from corpus.samples import Message, Role
from corpus.sandbox import Program, TemplateRefusal, compile_template
from corpus.template_budget import TemplateError
from lexicon.faults import Fault, FaultCode

# The format OpenAI published in 2023 and most open models understand.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_END = "<|im_end|>"

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MAX_CONFIG_BYTES = 16 << 20
# Metadata of a fault that is about one conversation, and not about the template.
REFUSED_KEY = "refused"
# Reasoning models keep what follows the thought of earlier turns and drop the thought.
_THOUGHT_END = "</think>"
_TOKEN_FIELDS = ("bos_token", "eos_token", "pad_token", "unk_token")
# Private-use characters: no template looks for them and no tokenizer gives them a meaning.
_MARKS = re.compile("\ue000([0-9]{1,6})\ue001|\ue002([0-9]{1,6})\ue003")
_MARK_CHARACTERS = frozenset("\ue000\ue001\ue002\ue003")


# Number of a message, its first character in a rendering, and one past its last.
_Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of a rendering.

    Attributes:
        is_content: the words of a message, in which special tokens are only text.
        is_trained: what the assistant says, with the end mark that it has to learn to say.
    """

    text: str
    is_content: bool
    is_trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A model's chat template, compiled in the jail.

    Attributes:
        source: the template as the model ships it, or ChatML.
        is_fallback: whether the model ships none.
        tokens: bos_token, eos_token and others that the template may print.
    """

    source: str
    is_fallback: bool
    tokens: dict[str, str] = field(default_factory=dict)
    program: Program = field(repr=False)

    @classmethod
    def compile(cls, source: str | None, *, tokens: dict[str, str] | None = None) -> Self:
        """A template from its source; ChatML when there is none.

        Raises:
            Fault: MODEL_CHAT_TEMPLATE_INVALID.
        """
        text = CHATML if source is None else source
        known = dict(tokens or {})
        if source is None:
            known["eos_token"] = CHATML_END
        try:
            program = compile_template(text)
        except TemplateError as error:
            raise _invalid(error) from error
        return cls(source=text, is_fallback=source is None, tokens=known, program=program)

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text; None when the model names none."""
        return self.tokens.get("eos_token")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model reads it.

        Raises:
            Fault: MODEL_CHAT_TEMPLATE_INVALID when the template fails or refuses the conversation.
        """
        return self.render_turns(
            [{"role": message.role.value, "content": message.content} for message in messages],
            add_generation_prompt=add_generation_prompt,
        )

    def render_turns(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The same of turns that carry more than a role and a text.

        Args:
            turns: messages as `apply_chat_template` of transformers takes them, with `tool_calls`,
                `reasoning_content` and others as the template reads them.
            tools: definitions of the tools that the model may call.
        Raises:
            Fault: MODEL_CHAT_TEMPLATE_INVALID when the template fails or refuses the conversation.
        """
        try:
            return self.program.render(
                {
                    **self.tokens,
                    "messages": [dict(turn) for turn in turns],
                    "add_generation_prompt": add_generation_prompt,
                    "tools": [dict(tool) for tool in tools] or None,
                    "documents": None,
                }
            )
        except TemplateError as error:
            raise _invalid(error) from error

    def segments(
        self, messages: Sequence[Message], *, trained_from: int = 0
    ) -> tuple[Segment, ...]:
        """The rendering of a conversation that ends with an answer, cut where its parts meet.

        Joined, the segments are `render(messages)`. Assistant turns from `trained_from` on are
        trained on, from the end of the generation prompt to the end mark of the turn.

        Raises:
            Fault: MODEL_CHAT_TEMPLATE_INVALID when the template fails or leaves an answer out.
        """
        text = self.render(messages)
        prompt = self._generation_prompt(messages)
        spans = self._content_spans(messages, text, prompt=prompt)
        trained = _trained_spans(messages, text, spans, prompt=prompt, trained_from=trained_from)
        return _cut(text, [(start, end) for _, start, end in spans], trained)

    def prompt_segments(self, messages: Sequence[Message]) -> tuple[Segment, ...]:
        """The rendering of a conversation that the assistant is to continue, cut likewise.

        Raises:
            Fault: MODEL_CHAT_TEMPLATE_INVALID when the template fails.
        """
        text = self.render(messages, add_generation_prompt=True)
        spans = self._content_spans(messages, text, prompt="", add_generation_prompt=True)
        return _cut(text, [(start, end) for _, start, end in spans], [])

    def _content_spans(
        self,
        messages: Sequence[Message],
        text: str,
        *,
        prompt: str,
        add_generation_prompt: bool = False,
    ) -> list[_Span]:
        """Where the messages stand in the text, in its order."""
        if _MARK_CHARACTERS.isdisjoint("".join(message.content for message in messages)):
            marked = [_marked(message, index) for index, message in enumerate(messages)]
            try:
                outline = self.render(marked, add_generation_prompt=add_generation_prompt)
            except Fault:
                outline = ""
            spans = _unmarked(messages, text, outline)
            if spans is not None:
                return spans
        return _searched(messages, text, prompt=prompt)

    def _generation_prompt(self, messages: Sequence[Message]) -> str:
        """What the template writes to make the assistant speak; empty when it writes nothing."""
        opening = [Message(role=Role.USER, content="Hello")]
        if messages[0].role is Role.SYSTEM:
            opening.insert(0, messages[0])
        try:
            plain = self.render(opening)
            prompted = self.render(opening, add_generation_prompt=True)
        except Fault:
            return ""
        return prompted.removeprefix(plain) if prompted.startswith(plain) else ""


def load(folder: Path) -> ChatTemplate:
    """The chat template of a model folder: `chat_template.jinja`, or `tokenizer_config.json`.

    Raises:
        Fault: MODEL_CHAT_TEMPLATE_INVALID, MODEL_CONFIG_INVALID.
    """
    config: dict[str, Any] = {}
    path = folder / TOKENIZER_CONFIG_FILE
    if path.is_file():
        config = read_tokenizer_config(path.read_bytes()[: MAX_CONFIG_BYTES + 1])
    source_path = folder / TEMPLATE_FILE
    source = None
    if source_path.is_file():
        with source_path.open("rb") as file:
            # As the hub's answer is read: what is not UTF-8 is replaced.
            source = file.read(MAX_CONFIG_BYTES).decode("utf-8", "replace")
    return from_config(config, source=source)


def from_config(config: Mapping[str, Any], *, source: str | None) -> ChatTemplate:
    """The template of a tokenizer config; `source` is the model's template file, which wins."""
    tokens: dict[str, str] = {}
    for name in _TOKEN_FIELDS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return ChatTemplate.compile(find_source(config, source=source), tokens=tokens)


def find_source(config: Mapping[str, Any], *, source: str | None) -> str | None:
    """The model's own template, None when it ships none.

    A config may hold a text, or a list of named ones of which `default` counts.
    """
    value = config.get("chat_template")
    if source is not None or isinstance(value, str):
        return value if source is None else source
    if not isinstance(value, list):
        return None
    named = {
        item["name"]: item["template"]
        for item in value
        if isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and isinstance(item.get("template"), str)
    }
    return named.get("default")


def read_tokenizer_config(content: bytes) -> dict[str, Any]:
    """`tokenizer_config.json` as a mapping.

    Raises:
        Fault: MODEL_CONFIG_INVALID.
    """
    try:
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError("it is too long")
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault(
            FaultCode.MODEL_CONFIG_INVALID, f"{TOKENIZER_CONFIG_FILE} cannot be read: {error}"
        ) from error
    if not isinstance(config, dict):
        raise Fault(FaultCode.MODEL_CONFIG_INVALID, f"{TOKENIZER_CONFIG_FILE} is not a JSON object")
    return config


def fallback_warning(model: str) -> str:
    """The warning of a run whose model ships no chat template."""
    return f"Chat template missing for model {model}; falling back to ChatML"


def is_refusal(fault: Fault) -> bool:
    """Whether the template has refused one conversation; it may well take others."""
    return REFUSED_KEY in fault.metadata


def about_row(fault: Fault, dataset: str, number: int) -> Fault:
    """The fault with the row that it is about."""
    said = fault.message[:1].lower() + fault.message[1:]
    return Fault(fault.code, f"Row {number} of {dataset}: {said}", dataset=dataset, row=number)


def trained_spans(segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    """Character spans of the joined segments that are trained on, neighbours joined."""
    position = 0
    begin: int | None = None
    for segment in segments:
        if segment.is_trained and begin is None:
            begin = position
        if not segment.is_trained and begin is not None:
            yield begin, position
            begin = None
        position += len(segment.text)
    if begin is not None:
        yield begin, position


def _marked(message: Message, index: int) -> Message:
    """The message with a mark at each end of its words; blanks stay outside."""
    core = message.content.strip()
    if not core:
        return message
    before, _, after = message.content.partition(core)
    words = f"{before}\ue000{index}\ue001{core}\ue002{index}\ue003{after}"
    return Message(role=message.role, content=words)


def _unmarked(messages: Sequence[Message], text: str, outline: str) -> list[_Span] | None:
    """Spans by the marks in a second rendering.

    None when that is another text, as when the template decides by how a message begins.
    """
    spans: list[_Span] = []
    opened: dict[int, int] = {}
    clean = ""
    cursor = 0
    for mark in _MARKS.finditer(outline):
        clean += outline[cursor : mark.start()]
        cursor = mark.end()
        if mark[1] is not None:
            opened[int(mark[1])] = len(clean)
            continue
        index = int(mark[2])
        if index >= len(messages):
            # A template that writes such marks by itself.
            return None
        if index in opened:
            start = opened.pop(index)
        else:
            # The template left the beginning out, as it does with a thought.
            kept = _common_suffix(clean, messages[index].content.rstrip())
            start = len(clean) - len(clean[len(clean) - kept :].lstrip())
        spans.append((index, start, len(clean)))
    if clean + outline[cursor:] != text or opened:
        return None
    return [_with_blanks(messages[span[0]].content, text, span) for span in spans]


def _with_blanks(content: str, text: str, span: _Span) -> _Span:
    """The span of a message's words with the blanks around them that the template kept."""
    index, start, end = span
    before = content[: len(content) - len(content.lstrip())]
    after = content[len(content.rstrip()) :]
    if text.endswith(before, 0, start):
        start -= len(before)
    return index, start, end + len(after) if text.startswith(after, end) else end


def _common_suffix(left: str, right: str) -> int:
    length = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        length += 1
    return length


def _searched(messages: Sequence[Message], text: str, *, prompt: str) -> list[_Span]:
    """Spans by looking for each message after the one before it, answers behind the prompt."""
    spans: list[_Span] = []
    position = 0
    for index, message in enumerate(messages):
        if message.role is Role.ASSISTANT and prompt:
            opening = text.find(prompt, position)
            position = position if opening < 0 else opening + len(prompt)
        content = message.content.strip()
        variants = [message.content, content]
        if _THOUGHT_END in content:
            variants.append(content.rsplit(_THOUGHT_END, 1)[1].strip())
        for variant in variants:
            start = text.find(variant, position) if variant else -1
            if start >= 0:
                spans.append((index, start, start + len(variant)))
                position = start + len(variant)
                break
    return spans


def _trained_spans(
    messages: Sequence[Message],
    text: str,
    spans: Sequence[_Span],
    *,
    prompt: str,
    trained_from: int,
) -> list[tuple[int, int]]:
    """From the end of the generation prompt to the end mark, for each answer that is learnt."""
    end_mark = _end_mark(text[max((end for _, _, end in spans), default=0) :])
    trained: list[tuple[int, int]] = []
    previous_end = 0
    found: set[int] = set()
    for index, start, end in spans:
        if messages[index].role is Role.ASSISTANT and index >= trained_from:
            begin = text.rfind(prompt, previous_end, start) if prompt else -1
            begin = start if begin < 0 else begin + len(prompt)
            blanks = len(text) - end - len(text[end:].lstrip())
            ends_marked = end_mark and text.startswith(end_mark, end + blanks)
            trained.append((begin, end + blanks + len(end_mark) if ends_marked else end))
            found.add(index)
        previous_end = end
    if len(messages) - 1 >= trained_from and len(messages) - 1 not in found:
        raise Fault(
            FaultCode.MODEL_CHAT_TEMPLATE_INVALID,
            "The chat template does not show the assistant's last answer",
        )
    return trained


def _end_mark(tail: str) -> str:
    """What a template writes to end a turn: the first line with something in it.

    What comes after it ends the text as a whole, and not every turn.
    """
    return tail.lstrip().partition("\n")[0].rstrip()


def _cut(
    text: str, contents: Sequence[tuple[int, int]], trained: Sequence[tuple[int, int]]
) -> tuple[Segment, ...]:
    edges = sorted({0, len(text), *itertools.chain(*contents), *itertools.chain(*trained)})
    return tuple(
        Segment(
            text=text[start:end],
            is_content=_covers(contents, start),
            is_trained=_covers(trained, start),
        )
        for start, end in itertools.pairwise(edges)
    )


def _covers(spans: Sequence[tuple[int, int]], position: int) -> bool:
    return any(start <= position < end for start, end in spans)


def _invalid(error: TemplateError) -> Fault:
    message = str(error)
    fault = Fault(FaultCode.MODEL_CHAT_TEMPLATE_INVALID, message[:1].upper() + message[1:])
    if isinstance(error, TemplateRefusal):
        fault.metadata[REFUSED_KEY] = "conversation"
    return fault
