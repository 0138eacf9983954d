"""PEFT's patterns of module names, matched as PEFT matches them, in bounded time.

Patterns are input of users, and a backtracking matcher can take exponential time on a pattern of 20
characters. Here all paths through a pattern are followed in parallel, so that a match costs at most
the size of the pattern times the length of the name, on every machine.
Source: `get_pattern_key` of peft.utils.other: the first key for which
`re.match(rf"(.*\\.)?({key})$", name)` matches. Thompson 1968, doi:10.1145/363347.363387.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from lexicon.faults import Fault, FaultCode

MAX_PATTERN_CHARS: Final = 1000
MAX_GROUPS: Final = 64
# Counted repetitions are expanded: `(a{9}){9}` has 81 states.
MAX_STATES: Final = 4000
MAX_STATES_OF_ALL: Final = 20_000
# One for every expert's matrices of the largest mixtures.
MAX_PATTERNS: Final = 50_000
# About 7 s; a usual pattern takes 200 steps for a name.
MAX_STEPS: Final = 10_000_000

_V = TypeVar("_V")

# Literal module names, in which a dot matches any character.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")
_WORD: Final = re.compile(r"\w")
_TOKEN: Final = re.compile(
    r"(?P<open>\((?:\?:)?(?!\?))"
    r"|(?P<close>\))"
    r"|(?P<either>\|)"
    r"|(?P<edge>[\^$]|\\[bB])"
    r"|(?P<repeat>[*+?]|\{[0-9]+(?:,[0-9]*)?\}|\{,[0-9]+\})(?P<lazy>\??)(?P<possessive>\+?)"
    # No sets within sets and no doubled signs: Python has announced to change their meaning.
    r"|(?P<one>\[\^?(?![\^\]])(?:[^\[\]\\&~|-]|&(?!&)|~(?!~)|\|(?!\|)|-(?!-)|\\[dswDSW\\\[\]^.-])+\]"
    r"|\\[dswDSW]|\\[^\w\s]|[^\\\[{()|*+?^$])"
)
# A set, up to its end, or an escaped character before one.
_SET_OR_ESCAPE: Final = re.compile(r"(?s)\\.|\[\^?\]?(?P<rest>(?:\\.|[^\]\\])*)")
_ESCAPE: Final = re.compile(r"(?s)\\.")
_UNSETTLED: Final = re.compile(r"\[|--|&&|~~|\|\|")


class _Unsupported(Exception):
    """The pattern has a construct that this module does not support."""


@dataclass(frozen=True, slots=True)
class _State:
    """A place in a pattern.

    `test` accepts the character that leads to `to[0]`; `edge` names the position that must hold for
    `to`; with neither, `to` is reached at no cost.
    """

    to: tuple[int, ...]
    test: re.Pattern[str] | None = None
    edge: str | None = None


class NamePatterns(Generic[_V]):
    """Values by pattern of a module name."""

    def __init__(self, field: str, values: Mapping[str, _V]) -> None:
        """Read the patterns.

        Args:
            field: name of their setting, for messages.
            values: value by pattern, in the order in which PEFT tries them.
        Raises:
            Fault: MODEL_WEIGHTS_INVALID for an invalid or too large regular expression,
                EXPORT_ADAPTER_UNSUPPORTED for unsupported constructs.
        """
        self._field = field
        self._values = values
        self._steps_left = MAX_STEPS
        self._machines: dict[str, list[_State]] = {}
        state_count = 0
        if len(values) > MAX_PATTERNS:
            raise _invalid(field, f"more than {MAX_PATTERNS} patterns")
        for key in values:
            if _PLAIN.fullmatch(key) is None:
                self._machines[key] = _machine(field, key)
                state_count += len(self._machines[key])
                if state_count > MAX_STATES_OF_ALL:
                    raise _invalid(field, "the patterns are too large")

    def get(self, name: str, default: _V) -> _V:
        """Returns the value of the first pattern that matches.

        Raises:
            Fault: MODEL_WEIGHTS_INVALID when the patterns take too many steps for the names.
        """
        for key, value in self._values.items():
            machine = self._machines.get(key)
            self._spend(1)
            if _plain_match(key, name) if machine is None else self._matches(machine, name):
                return value
        # Like PEFT: without a match the name itself is looked up.
        return self._values.get(name, default)

    def _matches(self, machine: Sequence[_State], name: str) -> bool:
        """Whether the machine accepts some beginning of the name, as `re.match` does."""
        current = _reached(machine, [0], name, 0)
        for place, character in enumerate(name):
            if len(machine) - 1 in current:
                return True
            if not current:
                return False
            self._spend(1 + len(current))
            found = [
                machine[state].to[0]
                for state in current
                if (test := machine[state].test) is not None and test.fullmatch(character)
            ]
            current = _reached(machine, found, name, place + 1)
        return len(machine) - 1 in current

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise _invalid(self._field, "they take too long to match")


def _plain_match(key: str, name: str) -> bool:
    before = len(name) - len(key)
    return (before == 0 or (before > 0 and name[before - 1] == ".")) and all(
        wanted in (".", found) for wanted, found in zip(key, name[before:], strict=True)
    )


def _reached(machine: Sequence[_State], states: Iterable[int], name: str, place: int) -> set[int]:
    """All states that are reached from these without a further character."""
    found: set[int] = set()
    waiting = list(states)
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        state = machine[number]
        if state.test is None and (state.edge is None or _is_at(state.edge, name, place)):
            waiting.extend(state.to)
    return found


def _is_at(edge: str, name: str, place: int) -> bool:
    if edge == "^":
        return place == 0
    if edge == "$":
        return name[place:] in ("", "\n")
    before, after = (
        0 <= at < len(name) and _WORD.fullmatch(name[at]) is not None for at in (place - 1, place)
    )
    return (before != after) == (edge == r"\b")


def _machine(field: str, key: str) -> list[_State]:
    """The states of a key within PEFT's expression; the last one accepts."""
    shown = f"the pattern {key[:60]!r}"
    if len(key) > MAX_PATTERN_CHARS or key.count("(") > MAX_GROUPS:
        raise _invalid(field, f"{shown} is too long")
    expression = rf"(.*\.)?({key})$"
    try:
        # `re` would warn of such a set, and switching its warnings off is for all threads.
        _require_settled_sets(key)
        re.compile(expression)
        return _Reader(expression).machine()
    except _Unsupported as error:
        raise Fault(
            FaultCode.EXPORT_ADAPTER_UNSUPPORTED,
            f"The adapter is not supported: {field} has {shown}, {error}.",
            field=field,
        ) from None
    except (re.error, OverflowError, RecursionError) as error:
        raise _invalid(field, f"{shown} is no regular expression") from error


def _require_settled_sets(key: str) -> None:
    """Refuses sets whose meaning Python announces to change: nested ones and doubled signs."""
    for match in _SET_OR_ESCAPE.finditer(key):
        # An escaped character matches itself.
        if _UNSETTLED.search(_ESCAPE.sub("x", match["rest"] or "")):
            raise _Unsupported("which has a set within a set or a doubled sign in one")


class _Reader:
    """Writes the states of an expression that `re` accepts."""

    def __init__(self, expression: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(expression):
            match = _TOKEN.match(expression, place)
            if match is None or match["possessive"]:
                raise _Unsupported("which uses more than groups, sets, repetitions and anchors")
            kind = "repeat" if match["repeat"] else str(match.lastgroup)
            self._tokens.append((kind, match["repeat"] or match[0]))
            place = match.end()
        self._tokens.reverse()

    def machine(self) -> list[_State]:
        tree = self._either()
        states: list[_State] = []
        _write(tree, states)
        return [*states, _State(())]

    def _next_kind(self) -> str:
        return self._tokens[-1][0] if self._tokens else "end"

    def _either(self) -> "_Node":
        choices = [self._sequence()]
        while self._next_kind() == "either":
            self._tokens.pop()
            choices.append(self._sequence())
        return _Node(kind="either", parts=tuple(choices))

    def _sequence(self) -> "_Node":
        parts: list[_Node] = []
        while self._next_kind() not in ("either", "close", "end"):
            kind, text = self._tokens.pop()
            if kind == "open":
                parts.append(self._either())
                self._tokens.pop()
            elif kind == "repeat":
                least, most = _bounds(text)
                parts.append(_Node(kind="repeat", parts=(parts.pop(),), least=least, most=most))
            else:
                parts.append(_Node(kind=kind, text=text))
        return _Node(kind="sequence", parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    kind: str
    text: str = ""
    parts: "tuple[_Node, ...]" = ()
    least: int = 0
    most: int | None = None


def _bounds(text: str) -> tuple[int, int | None]:
    if text in ("*", "+", "?"):
        return (1 if text == "+" else 0), (1 if text == "?" else None)
    least, comma, most = text[1:-1].partition(",")
    return int(least or 0), (int(most) if most else None) if comma else int(least)


def _write(node: _Node, states: list[_State]) -> None:
    """Appends the states of a node, directly before those of the next one."""
    if len(states) > MAX_STATES:
        raise _Unsupported("which is too large when its repetitions are written out")
    match node.kind:
        case "sequence":
            for part in node.parts:
                _write(part, states)
        case "either":
            ends = []
            for choice in node.parts[:-1]:
                fork = len(states)
                states.append(_State(()))
                _write(choice, states)
                ends.append(len(states))
                states.append(_State(()))
                states[fork] = _State((fork + 1, len(states)))
            _write(node.parts[-1], states)
            for end in ends:
                states[end] = _State((len(states),))
        case "repeat":
            _write_repeat(node, states)
        case "edge":
            states.append(_State((len(states) + 1,), edge=node.text))
        case _:
            states.append(_State((len(states) + 1,), test=re.compile(node.text)))


def _write_repeat(node: _Node, states: list[_State]) -> None:
    (part,) = node.parts
    start = len(states)
    for count in range(node.least):
        _write(part, states)
        if count == 0 and len(states) == start:
            break  # A repetition of an empty node is empty.
    if node.most is None:
        fork = len(states)
        states.append(_State(()))
        _write(part, states)
        states.append(_State((fork,)))
        states[fork] = _State((fork + 1, len(states)))
        return
    forks = []
    for _ in range(node.most - node.least):
        forks.append(len(states))
        states.append(_State(()))
        _write(part, states)
    for fork in forks:
        states[fork] = _State((fork + 1, len(states)))


def _invalid(field: str, reason: str) -> Fault:
    return Fault(
        FaultCode.MODEL_WEIGHTS_INVALID, f"The adapter is damaged: {field}: {reason}.", field=field
    )
