"""Go's text/template as far as Modelfiles use it: enough to prove what a TEMPLATE prints.

Supported: text with trim markers, comments, variables, `if`/`else if`/`else`, `range`, `with`,
`break`, `continue`, pipelines, parentheses, field chains, and the functions named in `_FUNCTIONS`.
Source: package documentation of text/template; `Modelfile` documentation of Ollama for the data.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

# A template that loops is refused long before it hurts.
MAX_STEPS: Final = 100_000

# Braces inside quotes and comments do not end an action.
_ACTION: Final = re.compile(
    r"""\{\{(-\s)?((?:"(?:[^"\\]|\\.)*"|`[^`]*`|/\*.*?\*/|[^"`])*?)(\s-)?\}\}""", re.DOTALL
)
_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<variable>\$\w*)|(?P<field>\.\w+)|
        (?P<dot>\.)|(?P<assign>:=|=)|(?P<word>\w+)|(?P<sign>[()|,])
    )""",
    re.VERBOSE,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


class GoTemplateError(Exception):
    """The template is not valid, or does what is not supported."""


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def render(source: str, data: Mapping[str, Any]) -> str:
    """Returns what the template prints for the data.

    Raises:
        GoTemplateError: it does not parse, fails, or loops too long.
    """
    nodes = _Parser(source).parse()
    scope = _Scope(variables=[{"$": data}], out=[])
    _run(nodes, data, scope)
    return "".join(scope.out)


@dataclass(slots=True)
class _Scope:
    variables: list[dict[str, Any]]
    out: list[str]
    steps: int = 0

    def get(self, name: str) -> Any:
        for frame in reversed(self.variables):
            if name in frame:
                return frame[name]
        raise GoTemplateError(f"undefined variable {name}")

    def put(self, name: str, value: Any, *, declare: bool) -> None:
        if declare:
            self.variables[-1][name] = value
            return
        for frame in reversed(self.variables):
            if name in frame:
                frame[name] = value
                return
        raise GoTemplateError(f"undefined variable {name}")


@dataclass(slots=True, kw_only=True)
class _Node:
    """One element: kind is text, print, if, range, with, break or continue."""

    kind: str
    text: str = ""
    names: list[str] = field(default_factory=list)
    declares: bool = False
    pipeline: Any = None
    body: "list[_Node]" = field(default_factory=list)
    other: "list[_Node]" = field(default_factory=list)


class _Parser:
    def __init__(self, source: str) -> None:
        self._pieces = list(_split(source))
        self._index = 0

    def parse(self) -> list[_Node]:
        nodes, ended_by = self._block()
        if ended_by:
            raise GoTemplateError(f"unexpected {ended_by}")
        return nodes

    def _block(self) -> tuple[list[_Node], str]:
        """Reads nodes up to `else`, `end` or the end of the source; returns what ended them."""
        nodes: list[_Node] = []
        while self._index < len(self._pieces):
            is_action, text = self._pieces[self._index]
            self._index += 1
            if not is_action:
                nodes.append(_Node(kind="text", text=text))
                continue
            keyword = text.split(None, 1)[0] if text else ""
            if keyword in {"end", "else"}:
                return nodes, text
            nodes.append(self._action(keyword, text))
        return nodes, ""

    def _action(self, keyword: str, text: str) -> _Node:
        if keyword in {"break", "continue"}:
            return _Node(kind=keyword)
        if keyword not in {"if", "range", "with"}:
            return _with_names("print", text)
        node = _with_names(keyword, text[len(keyword) :])
        node.body, ended_by = self._block()
        if ended_by.startswith("else"):
            rest = ended_by[len("else") :].strip()
            if rest:
                node.other = [self._action(rest.split(None, 1)[0], rest)]
                return node
            node.other, ended_by = self._block()
        if ended_by != "end":
            raise GoTemplateError(f"{keyword} has no end")
        return node


def _split(source: str) -> Iterator[tuple[bool, str]]:
    """Yields (is action, text) with whitespace trimmed where markers say so; comments vanish."""
    position = 0
    trim_next = False
    for match in _ACTION.finditer(source):
        text = source[position : match.start()]
        text = text.lstrip() if trim_next else text
        text = text.rstrip() if match[1] else text
        if text:
            yield False, text
        trim_next = bool(match[3])
        position = match.end()
        inner = match[2].strip()
        if not inner.startswith("/*"):
            yield True, inner
    rest = source[position:]
    rest = rest.lstrip() if trim_next else rest
    if "{{" in rest:
        raise GoTemplateError("an action is not closed")
    if rest:
        yield False, rest


def _with_names(kind: str, text: str) -> _Node:
    """A node whose pipeline may declare or assign variables."""
    tokens = _tokens(text)
    names: list[str] = []
    declares = False
    kinds = [token[0] for token in tokens]
    if "assign" in kinds:
        place = kinds.index("assign")
        names = [token[1] for token in tokens[:place] if token[0] == "variable"]
        declares = tokens[place][1] == ":="
        tokens = tokens[place + 1 :]
    pipeline, rest = _pipeline(tokens)
    if rest:
        raise GoTemplateError(f"unexpected {rest[0][1]}")
    return _Node(kind=kind, names=names, declares=declares, pipeline=pipeline)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match or not match.lastgroup:
            raise GoTemplateError(f"unexpected {text[position : position + 10]!r}")
        # A field right after an operand belongs to it; after a space it is an operand of its own.
        joined = match.lastgroup == "field" and tokens and match[0] == match["field"]
        tokens.append(("chain" if joined else match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


def _pipeline(tokens: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
    """Parses `command | command`; a command is a list of operands."""
    commands: list[list[Any]] = [[]]
    while tokens:
        kind, value = tokens[0]
        if value == ")" and kind == "sign":
            break
        tokens = tokens[1:]
        if kind == "sign" and value == "|":
            commands.append([])
        elif kind == "sign" and value == "(":
            inner, tokens = _pipeline(tokens)
            if not tokens:
                raise GoTemplateError("a parenthesis is not closed")
            commands[-1].append(("pipeline", inner))
            tokens = tokens[1:]
        elif kind == "chain":
            if not commands[-1]:
                raise GoTemplateError("a field has no operand")
            commands[-1][-1] = ("member", (commands[-1][-1], value[1:]))
        else:
            commands[-1].append((kind, value))
    if not all(commands):
        raise GoTemplateError("a command is empty")
    return commands, tokens


def _run(nodes: Sequence[_Node], dot: Any, scope: _Scope) -> None:
    for node in nodes:
        scope.steps += 1
        if scope.steps > MAX_STEPS:
            raise GoTemplateError("the template takes too many steps")
        match node.kind:
            case "text":
                scope.out.append(node.text)
            case "break":
                raise _Break
            case "continue":
                raise _Continue
            case "range":
                _run_range(node, dot, scope)
            case kind:
                value = _evaluate(node.pipeline, dot, scope)
                if kind == "print":
                    _print(node, value, scope)
                else:
                    _run_choice(node, value, dot, scope)


def _print(node: _Node, value: Any, scope: _Scope) -> None:
    if not node.names:
        scope.out.append(_text(value))
    for name in node.names:
        scope.put(name, value, declare=node.declares)


def _run_choice(node: _Node, value: Any, dot: Any, scope: _Scope) -> None:
    scope.variables.append(dict.fromkeys(node.names, value))
    try:
        chosen = bool(value)
        _run(
            node.body if chosen else node.other,
            value if chosen and node.kind == "with" else dot,
            scope,
        )
    finally:
        scope.variables.pop()


def _run_range(node: _Node, dot: Any, scope: _Scope) -> None:
    items = _evaluate(node.pipeline, dot, scope)
    pairs = list(items.items()) if isinstance(items, Mapping) else list(enumerate(items or []))
    if not pairs:
        scope.variables.append({})
        _run(node.other, dot, scope)
        scope.variables.pop()
    for key, value in pairs:
        scope.variables.append(dict(zip(reversed(node.names), (value, key), strict=False)))
        try:
            _run(node.body, value, scope)
        except _Break:
            break
        except _Continue:
            continue
        finally:
            scope.variables.pop()


def _evaluate(pipeline: Any, dot: Any, scope: _Scope) -> Any:
    value: Any = None
    for index, command in enumerate(pipeline):
        piped = [value] if index else []
        kind, name = command[0]
        if kind == "word" and name in _FUNCTIONS:
            arguments = [_operand(operand, dot, scope) for operand in command[1:]] + piped
            try:
                value = _FUNCTIONS[name](*arguments)
            except (TypeError, IndexError, KeyError) as error:
                raise GoTemplateError(f"{name}: {error}") from error
        elif len(command) == 1 and not piped:
            value = _operand(command[0], dot, scope)
        else:
            raise GoTemplateError(f"{name} is not a function")
    return value


def _operand(operand: tuple[str, Any], dot: Any, scope: _Scope) -> Any:
    kind, value = operand
    match kind:
        case "string":
            return value[1:-1] if value[0] == "`" else _unescape(value[1:-1])
        case "number":
            return int(value)
        case "variable":
            return scope.get(value)
        case "dot":
            return dot
        case "field":
            return _member(dot, value[1:])
        case "member":
            owner, name = value
            return _member(_operand(owner, dot, scope), name)
        case "pipeline":
            return _evaluate(value, dot, scope)
        case "word" if value in {"true", "false", "nil"}:
            return {"true": True, "false": False, "nil": None}[value]
        case _:
            raise GoTemplateError(f"unexpected {value}")


def _member(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else None


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text)


def _text(value: Any) -> str:
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _slice(items: Any, start: int = 0, end: int | None = None) -> Any:
    return items[start:end]


def _index(items: Any, *keys: Any) -> Any:
    for key in keys:
        items = items[key]
    return items


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _compare(first: Any, second: Any) -> int:
    return int(first > second) - int(first < second)


_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: _compare(first, second) < 0,
    "le": lambda first, second: _compare(first, second) <= 0,
    "gt": lambda first, second: _compare(first, second) > 0,
    "ge": lambda first, second: _compare(first, second) >= 0,
    "len": len,
    "slice": _slice,
    "index": _index,
}
