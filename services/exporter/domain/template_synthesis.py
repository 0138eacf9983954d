"""A Modelfile's TEMPLATE, derived from what a model's own chat template prints.

The chat template is asked to render short conversations of made-up words; the text around the words
gives the marks of each role. The result is then compared with the chat template over other
conversations, so that a template which does more than wrap messages in marks is found out, not
guessed at.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from exporter.domain import go_template
from lexicon.faults import Fault

Message = tuple[str, str]
Render = Callable[[Sequence[Message], bool], str]

# Words that no template looks for. They start and end with letters, since many templates trim.
_SYSTEM: Final = "Sapphire rules"
_FIRST: Final = "Umber question"
_ANSWER: Final = "Amber reply"
_SECOND: Final = "Violet question"

SystemPlace = Literal["none", "block", "first-user", "last-user"]

# Conversations over which a derived template must print exactly what the chat template prints.
PROBES: Final[tuple[tuple[Message, ...], ...]] = (
    (("user", "Hello!"),),
    (("user", "What is 17 + 25?"), ("assistant", "42."), ("user", "And doubled?")),
    (("system", "Answer briefly."), ("user", "Why is the sky blue?")),
    (
        ("system", "You speak like a pirate."),
        ("user", "Wer bist du? – ein Test: äöü €"),
        ("assistant", "Arr, ich bin's.\nZeile zwei."),
        ("user", "日本語で言ってください。"),
    ),
    (
        ("user", "What does `x ** 2` give?"),
        ("assistant", "It squares `x`.\n\n- one\n- two"),
        ("user", "And 1234567 squared?"),
        ("assistant", "Too large to guess 🙂"),
        ("user", "Thanks"),
    ),
    (
        ("system", "A"),
        ("user", "B"),
        ("assistant", "C"),
        ("user", "D"),
        ("assistant", "E"),
        ("user", "F"),
    ),
)


# The TEMPLATE with names of marks between at-signs. Like the templates of Ollama's own models it
# leaves the answer open when the last message is the assistant's, so that answers can be continued.
_FRAME: Final = (
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "user" }}@USER_START@@SYSTEM@{{ .Content }}@USER_END@'
    "{{ if $last }}@PROMPT@{{ end }}"
    '{{ else if eq .Role "assistant" }}@ASSISTANT_START@{{ .Content }}'
    "{{ if not $last }}@ASSISTANT_END@{{ end }}"
    "{{ end }}{{ end }}"
)
# What opens the TEMPLATE and what stands inside the user's message, by the place of the system
# text.
_SYSTEM_FRAMES: Final[Mapping[SystemPlace, tuple[str, str]]] = {
    "none": ("@HEAD@", ""),
    "block": (
        "{{ if .System }}@SYSTEM_START@{{ .System }}@SYSTEM_END@{{ else }}@HEAD@{{ end }}",
        "",
    ),
    "first-user": (
        "@HEAD@{{ $first := true }}",
        (
            "{{ if and $first $.System }}@SYSTEM_START@{{ $.System }}@SYSTEM_END@{{ end }}"
            "{{ $first = false }}"
        ),
    ),
    "last-user": (
        "@HEAD@",
        "{{ if and $last $.System }}@SYSTEM_START@{{ $.System }}@SYSTEM_END@{{ end }}",
    ),
}
_PIECE: Final = re.compile("@([A-Z_]+)@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The text around messages.

    `head` opens a conversation without a system message (with the template's own default, if it has
    one). `system_start` and `system_end` stand around the system text; as a block of its own it
    opens the conversation in place of `head`.
    """

    head: str
    user_start: str
    user_end: str
    assistant_start: str
    assistant_end: str
    prompt: str
    system_place: SystemPlace = "none"
    system_start: str = ""
    system_end: str = ""

    def without_begin(self, begin_token: str) -> "Marks":
        """The same without the begin token, for runtimes that add it themselves.

        Some templates begin every turn with it: then it moves to the end of the turn before.
        """
        if begin_token and not self.head and self.user_start.startswith(begin_token):
            return replace(
                self,
                user_start=self.user_start.removeprefix(begin_token),
                assistant_end=self.assistant_end + begin_token,
            )
        opens_with_system = self.system_place == "block"
        return replace(
            self,
            head=self.head.removeprefix(begin_token),
            system_start=self.system_start.removeprefix(begin_token if opens_with_system else ""),
        )


def derive_marks(render: Render, *, end_token: str = "") -> Marks | None:
    """Returns the marks of a chat template, or None when it does not work by marks.

    Args:
        render: renders (role, text) messages, with the prompt for an answer when the flag is set.
        end_token: the text of the model's end token; some templates close a finished conversation
            with it once more.
    """
    user: Message = ("user", _FIRST)
    answer: Message = ("assistant", _ANSWER)
    asked = _cut(_try(render, [user], True), _FIRST)
    bare = _cut(_try(render, [user], False), _FIRST)
    answered = _cut(_try(render, [user, answer], False), _FIRST, _ANSWER)
    turns = _cut(_try(render, [user, answer, ("user", _SECOND)], True), _FIRST, _ANSWER, _SECOND)
    if not (asked and bare and answered and turns):
        return None
    head, tail = asked
    user_end, assistant_end = bare[1], answered[2]
    if not tail.startswith(user_end):
        user_end = user_end.removesuffix(end_token)
        assistant_end = assistant_end.removesuffix(end_token)
    if not (
        tail.startswith(user_end)
        and turns[1].startswith(user_end)
        and turns[2].startswith(assistant_end)
        and head.endswith(user_start := turns[2].removeprefix(assistant_end))
    ):
        return None
    marks = Marks(
        head=head.removesuffix(user_start),
        user_start=user_start,
        user_end=user_end,
        assistant_start=turns[1].removeprefix(user_end),
        assistant_end=assistant_end,
        prompt=tail.removeprefix(user_end),
    )
    return _with_system(render, marks)


def go_source(marks: Marks) -> str:
    """Returns the TEMPLATE that prints these marks."""
    pieces = {
        "HEAD": _literal(marks.head),
        "SYSTEM_START": _literal(marks.system_start),
        "SYSTEM_END": _literal(marks.system_end),
        "USER_START": _literal(marks.user_start),
        "USER_END": _literal(marks.user_end),
        "ASSISTANT_START": _literal(marks.assistant_start),
        "ASSISTANT_END": _literal(marks.assistant_end),
        "PROMPT": _literal(marks.prompt),
    }
    opening, inside = _SYSTEM_FRAMES[marks.system_place]
    frame = opening + _FRAME.replace("@SYSTEM@", inside)
    source = _PIECE.sub(lambda match: pieces[match[1]], frame)
    # Literal text holds no braces of its own, so that only empty branches go.
    return source.replace("{{ if $last }}{{ end }}", "").replace("{{ else }}{{ end }}", "{{ end }}")


def ollama_data(messages: Sequence[Message]) -> dict[str, Any]:
    """What Ollama hands a template: all messages, and the system texts joined."""
    return {
        "System": "\n\n".join(text for role, text in messages if role == "system"),
        "Messages": [{"Role": role, "Content": text} for role, text in messages],
        "Tools": None,
        "Response": "",
    }


def probes_of(render: Render) -> Iterator[tuple[tuple[Message, ...], str]]:
    """Yields the probes that the chat template accepts, with what it prints."""
    for probe in PROBES:
        text = _try(render, probe, True)
        if text is not None:
            yield probe, text


def prints_the_same(source: str, render: Render, *, begin_token: str) -> bool:
    """Whether a TEMPLATE prints what the chat template prints, without the begin token."""
    try:
        return all(
            go_template.render(source, ollama_data(probe)) == text.removeprefix(begin_token)
            for probe, text in probes_of(render)
        )
    except go_template.GoTemplateError:
        return False


def _with_system(render: Render, marks: Marks) -> Marks:
    """Adds where the system text goes; nowhere when the template refuses system messages."""
    plain = _cut(_try(render, [("system", _SYSTEM), ("user", _FIRST)], True), _SYSTEM, _FIRST)
    if not plain:
        return marks
    before, between, _ = plain
    if between.endswith(marks.user_start) and not before.endswith(marks.head + marks.user_start):
        return replace(
            marks,
            system_place="block",
            system_start=before,
            system_end=between.removesuffix(marks.user_start),
        )
    longer = [("system", _SYSTEM), ("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)]
    text = _try(render, longer, True) or ""
    is_last = text.find(_SYSTEM) > text.find(_ANSWER)
    return replace(
        marks,
        system_place="last-user" if is_last else "first-user",
        system_start=before.removeprefix(marks.head + marks.user_start),
        system_end=between,
    )


def _try(render: Render, messages: Sequence[Message], add_prompt: bool) -> str | None:
    try:
        return render(messages, add_prompt)
    except Fault:
        return None


def _cut(text: str | None, *words: str) -> list[str] | None:
    """Returns the text around words that each come exactly once, in order."""
    if text is None or any(text.count(word) != 1 for word in words):
        return None
    places = [text.index(word) for word in words]
    if places != sorted(places):
        return None
    starts = [0, *(place + len(word) for place, word in zip(places, words, strict=True))]
    return [text[start:end] for start, end in zip(starts, [*places, len(text)], strict=True)]


def _literal(text: str) -> str:
    """Text as it stands in a Go template; braces would begin an action."""
    return "".join(
        f'{{{{ "{piece}" }}}}' if is_brace else piece
        for is_brace, piece in (
            (key, "".join(group)) for key, group in itertools.groupby(text, key=lambda c: c in "{}")
        )
    )
