"""What our own TEMPLATEs print: the forms of Go's text/template that `template_synthesis` writes.

No interpreter of Go. An action is one of the forms below, word for word, or it is refused, and
names and fields that Go would not know are refused as well: a TEMPLATE is read as Ollama reads it
or not at all.
Source: package documentation of text/template; `Modelfile` documentation of Ollama for the data.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Braces stand in an action of their own, as a text between quotes.
_ACTION: Final = re.compile(r'\{\{ ("[{}]+"|[^{}]+) \}\}')
_BRACES: Final = re.compile('"[{}]+"')
_NAME: Final = re.compile(r"\$[a-z]+")


class GoTemplateError(Exception):
    """The source or the data is not what our templates have."""


@dataclass(slots=True, kw_only=True)
class _Scope:
    """What forms are read over: `dot` is the data, or the message within the range."""

    data: Mapping[str, Any]
    dot: Mapping[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)


def _opens_with_system(scope: _Scope) -> bool:
    is_system: bool = scope.data["Messages"][0]["Role"] == "system"
    return is_system


_Step = Callable[[_Scope], None]
_Form = Mapping[str, Callable[[_Scope], Any]]

_RANGE: Final = "range $i, $_ := .Messages"
_PRINTED: Final[_Form] = {
    ".Content": lambda scope: scope.dot["Content"],
    ".System": lambda scope: scope.dot["System"],
    "$.System": lambda scope: scope.data["System"],
}
_DECLARED: Final[_Form] = {
    "$last := eq (len (slice $.Messages $i)) 1": (
        lambda scope: len(scope.data["Messages"]) - scope.names["$i"] == 1
    ),
    "$first := true": lambda _scope: True,
}
_ASSIGNED: Final[_Form] = {"$first = false": lambda _scope: False}
# Go takes an empty text and the number 0 for false.
_CONDITIONS: Final[_Form] = {
    "$i": lambda scope: scope.names["$i"],
    "not $i": lambda scope: not scope.names["$i"],
    "not $last": lambda scope: not scope.names["$last"],
    "$.System": lambda scope: scope.data["System"],
    '(eq (index $.Messages 0).Role "system")': _opens_with_system,
    'eq .Role "user"': lambda scope: scope.dot["Role"] == "user",
    'eq .Role "assistant"': lambda scope: scope.dot["Role"] == "assistant",
    'eq .Role "system"': lambda scope: scope.dot["Role"] == "system",
    'and $last (ne .Role "assistant")': (
        lambda scope: scope.names["$last"] and scope.dot["Role"] != "assistant"
    ),
    "and $first $.System": lambda scope: scope.names["$first"] and scope.data["System"],
    'and $first (eq (index $.Messages 0).Role "system")': (
        lambda scope: scope.names["$first"] and _opens_with_system(scope)
    ),
    "and $last $.System": lambda scope: scope.names["$last"] and scope.data["System"],
    'and $last (eq (index $.Messages 0).Role "system")': (
        lambda scope: scope.names["$last"] and _opens_with_system(scope)
    ),
}


def render(source: str, data: Mapping[str, Any]) -> str:
    """Returns what a template of ours prints for the data.

    Raises:
        GoTemplateError: it has a form that our templates do not have, or the data lacks a field.
    """
    steps = _Reader(source).read()
    scope = _Scope(data=data, dot=data)
    try:
        _run(steps, scope)
    except (KeyError, IndexError) as error:
        raise GoTemplateError(f"the data lacks what the template prints: {error}") from error
    return "".join(scope.out)


class _Reader:
    """Reads a source into steps, block by block."""

    def __init__(self, source: str) -> None:
        self._pieces = _pieces(source)
        # In all of the source: a name of its own in an inner block would hide the outer one there.
        self._declared: set[str] = set()

    def read(self) -> list[_Step]:
        steps, ended_by = self._block(frozenset())
        if ended_by:
            raise _refused(ended_by)
        return steps

    def _block(self, outer: frozenset[str]) -> tuple[list[_Step], str]:
        """Steps up to `else`, `end` or the end of the source, and what ended them."""
        steps: list[_Step] = []
        names = set(outer)
        for text, action in self._pieces:
            if action.split(" ")[0] in {"else", "end"}:
                return steps, action
            steps.append(self._step(action, names) if action else _printing(text))
        return steps, ""

    def _step(self, action: str, names: set[str]) -> _Step:
        """What an action does; a name that it declares joins `names`."""
        if _BRACES.fullmatch(action):
            return _printing(action[1:-1])
        if action in _PRINTED:
            return _writing(_PRINTED[action])
        if action in _DECLARED:
            self._require_known(action.partition(":=")[2], names)
            self._declare(name := action.split(" ", maxsplit=1)[0], names)
            return _setting(name, _DECLARED[action])
        if action in _ASSIGNED:
            self._require_known(action, names)
            return _setting(action.split(" ", maxsplit=1)[0], _ASSIGNED[action])
        if action == _RANGE:
            return self._range(names)
        if action.startswith("if "):
            return self._choice(action.removeprefix("if "), names)
        raise _refused(action)

    def _range(self, names: set[str]) -> _Step:
        inner = set(names)
        self._declare("$i", inner)
        body, ended_by = self._block(frozenset(inner))
        if ended_by != "end":
            raise _unended("range", ended_by)

        def over_messages(scope: _Scope) -> None:
            for index, message in enumerate(scope.data["Messages"]):
                scope.names["$i"], scope.dot = index, message
                _run(body, scope)
            scope.dot = scope.data

        return over_messages

    def _choice(self, condition: str, names: set[str]) -> _Step:
        if condition not in _CONDITIONS:
            raise _refused(f"if {condition}")
        self._require_known(condition, names)
        holds = _CONDITIONS[condition]
        body, ended_by = self._block(frozenset(names))
        other: list[_Step] = []
        if ended_by.startswith("else if "):
            other, ended_by = [self._choice(ended_by.removeprefix("else if "), names)], "end"
        elif ended_by == "else":
            other, ended_by = self._block(frozenset(names))
        if ended_by != "end":
            raise _unended("if", ended_by)
        return lambda scope: _run(body if holds(scope) else other, scope)

    def _declare(self, name: str, names: set[str]) -> None:
        if name in self._declared:
            raise GoTemplateError(f"{name} is declared twice")
        self._declared.add(name)
        names.add(name)

    @staticmethod
    def _require_known(text: str, names: set[str]) -> None:
        for name in _NAME.findall(text):
            if name not in names:
                raise GoTemplateError(f"{name} is not declared here")


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """Texts and actions in order, each as a pair in which the other is empty."""
    position = 0
    for match in (*_ACTION.finditer(source), None):
        text = source[position : match.start() if match else len(source)]
        if brace := re.search("[{}].{0,20}", text, re.DOTALL):
            raise _refused(brace[0])
        if text:
            yield text, ""
        if match:
            yield "", match[1]
            position = match.end()


def _run(steps: list[_Step], scope: _Scope) -> None:
    for step in steps:
        step(scope)


def _printing(text: str) -> _Step:
    return lambda scope: scope.out.append(text)


def _writing(value: Callable[[_Scope], str]) -> _Step:
    return lambda scope: scope.out.append(value(scope))


def _setting(name: str, value: Callable[[_Scope], Any]) -> _Step:
    def put(scope: _Scope) -> None:
        scope.names[name] = value(scope)

    return put


def _refused(form: str) -> GoTemplateError:
    return GoTemplateError(f"{form!r} is not a form that our templates have")


def _unended(form: str, ended_by: str) -> GoTemplateError:
    return _refused(ended_by) if ended_by else GoTemplateError(f"{form} has no end")
