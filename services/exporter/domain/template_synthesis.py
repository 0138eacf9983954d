"""A Modelfile's TEMPLATE, derived from what a model's own chat template prints.

The chat template is asked to render short conversations of made-up words; the text around the words
gives the marks of each role. Several TEMPLATEs are made of them, which differ in how they treat
system messages. Each is compared with the chat template over groups of conversations, so that a
chat template which does more than wrap messages in marks is found out, not guessed at.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from exporter.domain import go_template
from exporter.domain.template_probes import (
    GROUPS,
    PLAIN,
    Conversation,
    Probed,
    ProbeGroup,
    Render,
    Texts,
    ollama_data,
    rendered,
    rendered_groups,
    said,
)
from lexicon.faults import Fault

# Words that no template looks for. They start and end with letters, since many templates trim.
_SYSTEM: Final = "Sapphire rules"
_FIRST: Final = "Umber question"
_ANSWER: Final = "Amber reply"
_SECOND: Final = "Violet question"

# Where the system text goes: nowhere; before the first turn; at the place of the message; inside
# the first or the last message of the user.
SystemPlace = Literal["none", "block", "in-place", "first-user", "last-user"]

# The TEMPLATE with names of marks between at-signs. Like the templates of Ollama's own models it
# leaves the answer open when the last message is the assistant's, so that answers can be continued.
_FRAME: Final = (
    "@OPENING@{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '@SYSTEM_TURN@{{ if eq .Role "user" }}@USER_START@@SYSTEM@{{ .Content }}@USER_END@'
    '{{ else if eq .Role "assistant" }}@ASSISTANT_START@{{ .Content }}'
    "{{ if not $last }}@ASSISTANT_END@{{ end }}"
    '{{ end }}{{ if and $last (ne .Role "assistant") }}@PROMPT@{{ end }}{{ end }}'
)
# Names of marks in the frame, and what they stand for by the place of the system text.
_SYSTEM_FRAMES: Final[Mapping[SystemPlace, Mapping[str, str]]] = {
    "none": {"OPENING": "@HEAD@"},
    "block": {
        "OPENING": (
            "{{ if @GIVEN@ }}@SYSTEM_START@{{ .System }}@SYSTEM_END@{{ else }}@HEAD@{{ end }}"
        )
    },
    "in-place": {
        "SYSTEM_TURN": (
            '{{ if eq .Role "system" }}@SYSTEM_MESSAGE@{{ else if not $i }}@HEAD@{{ end }}'
        )
    },
    "first-user": {
        "OPENING": "@HEAD@{{ $first := true }}",
        "SYSTEM": (
            "{{ if and $first @GIVEN@ }}@SYSTEM_START@{{ $.System }}@SYSTEM_END@{{ end }}"
            "{{ $first = false }}"
        ),
    },
    "last-user": {
        "OPENING": "@HEAD@",
        "SYSTEM": "{{ if and $last @GIVEN@ }}@SYSTEM_START@{{ $.System }}@SYSTEM_END@{{ end }}",
    },
}
_MESSAGE: Final = "@SYSTEM_START@{{ .Content }}@SYSTEM_END@"
_LATE_MESSAGE: Final = "@LATE_START@{{ .Content }}@LATE_END@"
_DIFFERING_MESSAGES: Final = f"{{{{ if $i }}}}@LATE_MESSAGE@{{{{ else }}}}{_MESSAGE}{{{{ end }}}}"
_HAS_TEXT: Final = "$.System"
_STANDS_FIRST: Final = '(eq (index $.Messages 0).Role "system")'
_PIECE: Final = re.compile("@([A-Z_]+)@")
# Branches that print nothing. Literal text holds no braces of its own.
_EMPTY_ELSE: Final = re.compile(r"\{\{ else(?: if [^{}]*)? \}\}(?=\{\{ end \}\})")
_EMPTY_IF: Final = re.compile(r"\{\{ if [^{}]* \}\}\{\{ end \}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The text around messages.

    `head` opens a conversation without a system message (with the template's own default, if it has
    one). `system_start` and `system_end` stand around the system text; as a block of its own it
    opens the conversation in place of `head`.

    Attributes:
        late: the text around a system message that is not the first, in place; None when the
            template drops such messages.
        marks_empty_system: whether the marks of the system text are printed around an empty one.
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
    late: tuple[str, str] | None = None
    marks_empty_system: bool = False

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
        opens_with_system = self.system_place in {"block", "in-place"}
        late_start, late_end = self.late or ("", "")
        return replace(
            self,
            head=self.head.removeprefix(begin_token),
            system_start=self.system_start.removeprefix(begin_token if opens_with_system else ""),
            late=(late_start.removeprefix(begin_token), late_end) if self.late else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """A TEMPLATE and how it compares with the chat template.

    Attributes:
        source: None when no TEMPLATE prints the same for what ordinary chats contain.
        outcomes: by key of a group; of the closest TEMPLATE when none is given, and of plain turns
            alone when none could be made.
        assistant_end: what ends an answer, empty when it was not found.
    """

    source: str | None
    outcomes: Mapping[str, Probed]
    assistant_end: str = ""


def synthesise(
    render: Render,
    *,
    begin_token: str,
    end_token: str,
    is_sayable: Callable[[str], bool] = lambda _source: True,
) -> Synthesis:
    """Returns the TEMPLATE that carries the most of a chat template.

    Args:
        begin_token: what runtimes put before every prompt by themselves; empty when they do not.
        end_token: the text of the model's end token.
        is_sayable: whether a Modelfile can hold the source.
    """
    wanted = rendered_groups(render)
    best = Synthesis(source=None, outcomes={PLAIN.key: Probed.DIFFERENT})
    for marks in candidates(render, end_token=end_token):
        best = replace(best, assistant_end=marks.assistant_end)
        source = go_source(marks.without_begin(begin_token))
        if not is_sayable(source):
            continue
        outcomes = compare(source, wanted, begin_token=begin_token)
        # Of equal ones the first, which is the simplest.
        if _rank(outcomes) > _rank(best.outcomes):
            best = replace(best, source=source, outcomes=outcomes)
    return best if is_shippable(best.outcomes) else replace(best, source=None)


def is_shippable(outcomes: Mapping[str, Probed]) -> bool:
    """Whether a TEMPLATE prints the same for what ordinary chats contain."""
    return outcomes[PLAIN.key] is Probed.EQUAL and not any(
        outcomes[group.key] is Probed.DIFFERENT for group in GROUPS if group.is_required
    )


def compare(
    source: str, wanted: Sequence[tuple[ProbeGroup, Texts]], *, begin_token: str
) -> dict[str, Probed]:
    """How a TEMPLATE compares with the chat template, by key of a group."""
    return {
        group.key: _outcome(source, group, texts, begin_token=begin_token)
        for group, texts in wanted
    }


def candidates(render: Render, *, end_token: str = "") -> Iterator[Marks]:
    """Yields the marks of a chat template, simplest first; none when it does not work by marks."""
    marks = derive_marks(render, end_token=end_token)
    if marks is None:
        return
    yield marks
    if marks.system_place == "none":
        return
    yield replace(marks, marks_empty_system=True)
    if marks.system_place == "block":
        yield replace(marks, system_place="in-place", late=_late(render, marks))


def derive_marks(render: Render, *, end_token: str = "") -> Marks | None:
    """Returns the marks of a chat template, or None when it does not work by marks.

    Args:
        render: renders a conversation, with the prompt for an answer when the flag is set.
        end_token: the text of the model's end token; some templates close a finished conversation
            with it once more.
    """
    user, answer = ("user", _FIRST), ("assistant", _ANSWER)
    asked = _cut(_try(render, said(user), True), _FIRST)
    bare = _cut(_try(render, said(user), False), _FIRST)
    answered = _cut(_try(render, said(user, answer), False), _FIRST, _ANSWER)
    longer = said(user, answer, ("user", _SECOND))
    turns = _cut(_try(render, longer, True), _FIRST, _ANSWER, _SECOND)
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
    late_start, late_end = marks.late or ("", "")
    is_late_alike = marks.late == (marks.system_start, marks.system_end)
    texts = {
        "HEAD": marks.head,
        "SYSTEM_START": marks.system_start,
        "SYSTEM_END": marks.system_end,
        "LATE_START": late_start,
        "LATE_END": late_end,
        "USER_START": marks.user_start,
        "USER_END": marks.user_end,
        "ASSISTANT_START": marks.assistant_start,
        "ASSISTANT_END": marks.assistant_end,
        "PROMPT": marks.prompt,
    }
    actions = {
        "OPENING": "",
        "SYSTEM_TURN": "",
        "SYSTEM": "",
        "GIVEN": _STANDS_FIRST if marks.marks_empty_system else _HAS_TEXT,
        "SYSTEM_MESSAGE": _MESSAGE if is_late_alike else _DIFFERING_MESSAGES,
        "LATE_MESSAGE": _LATE_MESSAGE if marks.late else "",
        **_SYSTEM_FRAMES[marks.system_place],
    }
    frame = _FRAME
    # An action may stand inside another one.
    for _ in range(3):
        frame = _PIECE.sub(lambda match: actions.get(match[1], match[0]), frame)
    source = _PIECE.sub(lambda match: _literal(texts[match[1]]), frame)
    return _EMPTY_IF.sub("", _EMPTY_ELSE.sub("", source))


def probes_of(render: Render) -> Iterator[tuple[Conversation, str]]:
    """Yields the plain conversations that the chat template accepts, with what it prints."""
    return rendered(render, PLAIN)


def _rank(outcomes: Mapping[str, Probed]) -> tuple[bool, int]:
    return is_shippable(outcomes), sum(each is Probed.EQUAL for each in outcomes.values())


def _outcome(source: str, group: ProbeGroup, texts: Texts, *, begin_token: str) -> Probed:
    """How a TEMPLATE compares over what the chat template prints, without the begin token."""
    are_equal = all(
        go_template.render(source, ollama_data(conversation)) == text.removeprefix(begin_token)
        for conversation, text in texts
    )
    if not are_equal:
        return Probed.DIFFERENT
    return Probed.EQUAL if any(group.shows in text for _, text in texts) else Probed.NOT_PROBED


def _with_system(render: Render, marks: Marks) -> Marks:
    """Adds where the system text goes; nowhere when the template refuses system messages."""
    system, user = ("system", _SYSTEM), ("user", _FIRST)
    plain = _cut(_try(render, said(system, user), True), _SYSTEM, _FIRST)
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
    longer = said(system, user, ("assistant", _ANSWER), ("user", _SECOND))
    text = _try(render, longer, True) or ""
    is_last = text.find(_SYSTEM) > text.find(_ANSWER)
    return replace(
        marks,
        system_place="last-user" if is_last else "first-user",
        system_start=before.removeprefix(marks.head + marks.user_start),
        system_end=between,
    )


def _late(render: Render, marks: Marks) -> tuple[str, str] | None:
    """The text around a system message after others; None when the template leaves it out."""
    messages = ("user", _FIRST), ("assistant", _ANSWER), ("system", _SYSTEM), ("user", _SECOND)
    text = _try(render, said(*messages), True)
    if text is None:
        # Nobody can send one: any marks will do, and those of the first are the simplest.
        return marks.system_start, marks.system_end
    pieces = _cut(text, _FIRST, _ANSWER, _SYSTEM, _SECOND)
    if pieces is None:
        return None
    return pieces[2].removeprefix(marks.assistant_end), pieces[3].removesuffix(marks.user_start)


def _try(render: Render, conversation: Conversation, add_prompt: bool) -> str | None:
    try:
        return render(conversation, add_prompt)
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
    """Text as it is written in a Go template; braces would begin an action."""
    return "".join(
        f'{{{{ "{piece}" }}}}' if is_brace else piece
        for is_brace, piece in (
            (key, "".join(group)) for key, group in itertools.groupby(text, key=lambda c: c in "{}")
        )
    )
