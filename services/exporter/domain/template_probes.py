"""Conversations over which a Modelfile's TEMPLATE is compared with the chat template.

They come in groups, by what people send. Each conversation has two forms: the messages that a chat
template gets from transformers or llama.cpp, and the data that Ollama hands a TEMPLATE.
"""

import enum
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lexicon.faults import Fault

LONG_TEXT_CHARACTERS: Final = 10_000
TURN_COUNT: Final = 40
# Templates of Mistral take ids of nine letters and digits only.
_CALL_ID: Final = "call00001"


class Probed(enum.StrEnum):
    """What comparing a group of conversations gave."""

    EQUAL = "equal"
    DIFFERENT = "different"
    # The chat template itself refuses or leaves out what the group is about.
    NOT_PROBED = "not_probed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool by the assistant."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    `thought` is what the client sends beside the text, as `reasoning_content` or `thinking`. `name`
    is the tool that a tool message answers for.
    """

    role: str
    content: str
    thought: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and the definitions of the tools that the model may call."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


# Renders by the chat template, with the prompt for an answer when the flag is set.
Render = Callable[[Conversation, bool], str]
# Conversations with what the chat template prints.
Texts = Sequence[tuple[Conversation, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeGroup:
    """Conversations of one kind.

    Attributes:
        key: name in export_proof.json.
        words: the kind in the README of the bundle.
        is_required: a TEMPLATE that prints one of them differently is not shipped. What ordinary
            chats contain is required; what a TEMPLATE lacks of the rest is named in the README.
        shows: a text without which a rendering says nothing: the chat template left out what the
            group is about.
        has_outer_blanks: sentencepiece conversions are known to tokenise such texts differently.
    """

    key: str
    words: str
    is_required: bool
    conversations: tuple[Conversation, ...]
    shows: str = ""
    has_outer_blanks: bool = False


def said(*messages: tuple[str, str], tools: Sequence[Mapping[str, Any]] = ()) -> Conversation:
    """A conversation of (role, text) messages."""
    return Conversation(tuple(Turn(role, text) for role, text in messages), tuple(tools))


def chat_turns(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages as chat templates read them."""
    return [_chat_turn(turn) for turn in conversation.turns]


def ollama_data(conversation: Conversation) -> dict[str, Any]:
    """What Ollama hands a TEMPLATE.

    `.System` is the texts of all system messages. `.Messages` holds all messages, of which
    neighbours of one role become one, except for those of tools.

    Source: `Template.Execute` and `collate` in template/template.go of Ollama.
    """
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        if messages and messages[-1]["Role"] == turn.role != "tool":
            messages[-1]["Content"] += "\n\n" + turn.content
        else:
            messages.append(_ollama_message(turn))
    return {
        "System": "\n\n".join(turn.content for turn in conversation.turns if turn.role == "system"),
        "Messages": messages,
        "Tools": [dict(tool) for tool in conversation.tools],
        "Response": "",
        "Think": False,
        "ThinkLevel": "",
        "IsThinkSet": False,
    }


def rendered(render: Render, group: ProbeGroup) -> Iterator[tuple[Conversation, str]]:
    """Yields the conversations of a group that the chat template takes, with what it prints."""
    for conversation in group.conversations:
        try:
            yield conversation, render(conversation, True)
        except Fault:
            continue


def rendered_groups(render: Render) -> list[tuple[ProbeGroup, Texts]]:
    """All groups with what the chat template prints."""
    return [(group, list(rendered(render, group))) for group in GROUPS]


def _chat_turn(turn: Turn) -> dict[str, Any]:
    made: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.thought:
        made |= {"reasoning_content": turn.thought, "thinking": turn.thought}
    if turn.name:
        made |= {"name": turn.name, "tool_call_id": _CALL_ID}
    if turn.calls:
        made["tool_calls"] = [
            {
                "id": _CALL_ID,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in turn.calls
        ]
    return made


def _ollama_message(turn: Turn) -> dict[str, Any]:
    return {
        "Role": turn.role,
        "Content": turn.content,
        "Thinking": turn.thought,
        "ToolName": turn.name,
        "ToolCalls": [
            {"Function": {"Name": call.name, "Arguments": dict(call.arguments)}}
            for call in turn.calls
        ],
    }


_WEATHER: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
_ASKED: Final = Turn("user", "How warm is it in Graz?")
_CALLED: Final = Turn(
    "assistant", "", calls=(Call(name="get_weather", arguments={"city": "Graz"}),)
)
_TOLD: Final = Turn("tool", '{"celsius": 21}', name="get_weather")


def _long_text(word: str) -> str:
    """A text of varied words and lines, LONG_TEXT_CHARACTERS long."""
    lines = (f"{word} {n}: the square is {n * n}, ä ö ü €.\n" for n in itertools.count(1))
    text = ""
    while len(text) < LONG_TEXT_CHARACTERS:
        text += next(lines)
    # Neither end is blank, since many templates trim.
    return text[: LONG_TEXT_CHARACTERS - 1] + "."


def _many_turns() -> list[tuple[str, str]]:
    turns = [
        (("user", f"Question {n}?"), ("assistant", f"Answer {n}.")) for n in range(1, TURN_COUNT)
    ]
    return [*itertools.chain(*turns), ("user", f"Question {TURN_COUNT}?")]


PLAIN: Final = ProbeGroup(
    key="plain_turns",
    words="plain turns",
    is_required=True,
    conversations=(
        said(("user", "Hello!")),
        said(("user", "What is 17 + 25?"), ("assistant", "42."), ("user", "And doubled?")),
        said(("system", "Answer briefly."), ("user", "Why is the sky blue?")),
        said(
            ("system", "You speak like a pirate."),
            ("user", "Wer bist du? – ein Test: äöü €"),
            ("assistant", "Arr, ich bin's.\nZeile zwei."),
            ("user", "日本語で言ってください。"),
        ),
        said(
            ("user", "What does `x ** 2` give?"),
            ("assistant", "It squares `x`.\n\n- one\n- two"),
            ("user", "And 1234567 squared?"),
            ("assistant", "Too large to guess 🙂"),
            ("user", "Thanks"),
        ),
        said(
            ("system", "A"),
            ("user", "B"),
            ("assistant", "C"),
            ("user", "D"),
            ("assistant", "E"),
            ("user", "F"),
        ),
    ),
)

GROUPS: Final[tuple[ProbeGroup, ...]] = (
    PLAIN,
    ProbeGroup(
        key="thoughts_in_history",
        words="thoughts (`<think>`) inside earlier answers",
        is_required=True,
        conversations=(
            said(
                ("user", "Is 91 prime?"),
                ("assistant", "<think>\n7 times 13 is 91.\n</think>\n\nNo."),
                ("user", "And 97?"),
            ),
            # A prompt that opens the thought itself leaves answers with its end alone.
            said(
                ("system", "Answer briefly."),
                ("user", "Is 91 prime?"),
                ("assistant", "7 times 13 is 91.\n</think>\n\nNo."),
                ("user", "And 97?"),
                ("assistant", "<think>Nothing divides it.</think>Yes."),
                ("user", "Thanks"),
            ),
            said(
                ("user", "How do I write a thought, <think>like this</think>?"),
                ("assistant", "Put it between tags: <think>so</think> is one."),
                ("user", "I see"),
            ),
        ),
    ),
    ProbeGroup(
        key="empty_system_message",
        words="an empty system message",
        is_required=True,
        conversations=(
            said(("system", ""), ("user", "Hello!")),
            said(("system", ""), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")),
        ),
    ),
    ProbeGroup(
        key="long_texts",
        words="texts of 10,000 characters",
        is_required=True,
        conversations=(
            said(("user", _long_text("Line"))),
            said(
                ("system", _long_text("Rule")),
                ("user", "Go on"),
                ("assistant", _long_text("Answer")),
                ("user", "And now?"),
            ),
        ),
    ),
    ProbeGroup(
        key="many_turns",
        words="40 turns",
        is_required=True,
        conversations=(
            said(*_many_turns()),
            said(("system", "Answer briefly."), *_many_turns()),
        ),
    ),
    ProbeGroup(
        key="thoughts_beside_answers",
        words="thoughts that are sent beside an answer (`thinking`)",
        is_required=False,
        shows="7 times 13",
        conversations=(
            Conversation(
                (
                    Turn("user", "Is 91 prime?"),
                    Turn("assistant", "No.", thought="7 times 13 is 91."),
                    Turn("user", "And 97?"),
                )
            ),
        ),
    ),
    ProbeGroup(
        key="tool_definitions",
        words="definitions of tools",
        is_required=False,
        shows="get_weather",
        conversations=(
            Conversation((_ASKED,), (_WEATHER,)),
            Conversation((Turn("system", "Answer briefly."), _ASKED), (_WEATHER,)),
        ),
    ),
    ProbeGroup(
        key="tool_turns",
        words="calls of tools and their results",
        is_required=False,
        shows="celsius",
        conversations=(
            Conversation((_ASKED, _CALLED, _TOLD)),
            Conversation(
                (_ASKED, _CALLED, _TOLD, Turn("assistant", "21 °C."), Turn("user", "Thanks"))
            ),
        ),
    ),
    ProbeGroup(
        key="late_system_message",
        words="a system message after the first message",
        is_required=False,
        shows="Be brief.",
        conversations=(
            said(
                ("user", "Hi"), ("assistant", "Hello."), ("system", "Be brief."), ("user", "Why?")
            ),
            said(
                ("system", "Be kind."),
                ("user", "Hi"),
                ("assistant", "Hello."),
                ("system", "Be brief."),
                ("user", "Why?"),
            ),
            said(("user", "Why?"), ("system", "Be brief.")),
        ),
    ),
    ProbeGroup(
        key="second_system_message",
        words="a second system message right after the first, which Ollama joins",
        is_required=False,
        shows="Be brief.",
        conversations=(said(("system", "Be kind."), ("system", "Be brief."), ("user", "Why?")),),
    ),
    ProbeGroup(
        key="two_messages_of_one_role",
        words="two messages of one side in a row, which Ollama joins",
        is_required=False,
        conversations=(
            said(("user", "Hi"), ("user", "Why?")),
            said(("user", "Hi"), ("assistant", "One."), ("assistant", "Two."), ("user", "Why?")),
        ),
    ),
    ProbeGroup(
        key="surrounding_blanks",
        words="blanks and line ends around a text",
        is_required=False,
        has_outer_blanks=True,
        conversations=(
            said(("user", "  What is this?\n")),
            said(("system", "\nBe brief. "), ("user", "Why?")),
            said(("user", "Hi"), ("assistant", "\n\nHello.\n"), ("user", "Why?")),
        ),
    ),
)
