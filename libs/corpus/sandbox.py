"""A jail for chat templates, which are programs that strangers wrote.

Jinja's immutable sandbox keeps a template from reaching Python. This adds what it leaves open: an
allow-list of filters, globals and methods whose cost is known, each of which spends from a budget
(`template_budget`).
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from corpus.template_budget import (
    TemplateError,
    budget,
    comparing,
    meter,
    metered,
    printed,
    size,
    spend,
    spend_repetition,
    step,
    weighed,
)

MAX_SOURCE_CHARACTERS = 1 << 19
MAX_OUTPUT_CHARACTERS = 16 << 20
MAX_INDENT = 8
MAX_INTEGER = 1 << 63
MAX_DATE_PATTERN = 64

# Templates that print today's date get this day, so that a row gives the same tokens every day.
_FIXED_DAY = datetime(2024, 7, 26, tzinfo=UTC)

_STRING_METHODS = frozenset(
    {
        "capitalize",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isdigit",
        "isspace",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
    }
)
_MAPPING_METHODS = frozenset({"get", "items", "keys", "values"})
_SEQUENCE_METHODS = frozenset({"count", "index"})
# Cheap whatever they are given. Those that could be dear have a wrapper of their own below.
_FILTERS = (
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "reject",
    "rejectattr",
    "reverse",
    "safe",
    "select",
    "selectattr",
    "title",
    "trim",
    "upper",
)
# These compare elements, which may be structures that share their parts many times over.
_COMPARING_FILTERS = ("dictsort", "max", "min", "sort", "unique")
_TESTS = (
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "even",
    "false",
    "filter",
    "float",
    "integer",
    "iterable",
    "lower",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
)
_COMPARING_TESTS = ("!=", "==", "eq", "equalto", "ge", "gt", "in", "le", "lt", "ne", "sameas")


class TemplateRefusal(TemplateError):
    """What a template itself says of a conversation that it does not take."""


# Whatever a strange program may run into; each is its own fault, not ours.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled template."""

    template: jinja2.Template

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of the variables.

        Raises:
            TemplateError: The template refuses its input, fails, or spends too much.
        """
        pieces: list[str] = []
        length = 0
        try:
            with budget():
                for piece in self.template.generate(**variables):
                    length += len(piece)
                    if length > MAX_OUTPUT_CHARACTERS:
                        raise TemplateError(
                            f"the chat template prints more than {MAX_OUTPUT_CHARACTERS} characters"
                        )
                    pieces.append(piece)
        except TemplateError:
            raise
        except RecursionError as error:
            raise TemplateError("the chat template recurses too deeply") from error
        except _FAILURES as error:
            raise TemplateError(f"the chat template failed: {error}") from error
        return "".join(pieces)


def compile_template(source: str) -> Program:
    """A template ready to render.

    Raises:
        TemplateError: It is too long or not a template.
    """
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise TemplateError(f"the chat template is longer than {MAX_SOURCE_CHARACTERS} characters")
    environment = _Jail()
    try:
        tree = environment.parse(source)
        _Meter(environment).visit(tree)
        return Program(environment.from_string(tree))
    except RecursionError as error:
        raise TemplateError("the chat template is nested too deeply") from error
    except (jinja2.TemplateError, SyntaxError, ValueError) as error:
        raise TemplateError(f"the chat template cannot be compiled: {error}") from error


class _Meter:
    """Rewrites a syntax tree so that loops and macros count steps and `~` counts characters."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit(self, tree: nodes.Template) -> None:
        for block in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(block, nodes.For | nodes.Macro | nodes.CallBlock)
            block.body.insert(0, self._tick(block.lineno))
        for concat in list(tree.find_all(nodes.Concat)):
            concat.nodes = [self._filtered(node, "_printed") for node in concat.nodes]
        for compare in list(tree.find_all(nodes.Compare)):
            compare.expr = self._filtered(compare.expr, "_weighed")
            for operand in compare.ops:
                operand.expr = self._filtered(operand.expr, "_weighed")
        loads = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        for forbidden in tree.find_all(loads):
            raise TemplateError(f"the chat template loads another one in line {forbidden.lineno}")

    def _filtered(self, node: nodes.Expr, name: str) -> nodes.Filter:
        wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        wrapped.set_environment(self._environment)
        return wrapped

    def _tick(self, line: int) -> nodes.Output:
        call = nodes.Call(nodes.Name("_tick", "load"), [], [], None, None)
        output = nodes.Output([call])
        output.set_lineno(line)
        output.set_environment(self._environment)
        return output


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says; here it only encloses."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Jail(ImmutableSandboxedEnvironment):
    """The sandbox with an allow-list instead of a block-list."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "-", "//", "/"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            cache_size=0,
            finalize=printed,
        )
        allowed = {name: metered(self.filters[name]) for name in _FILTERS}
        allowed |= {name: comparing(self.filters[name]) for name in _COMPARING_FILTERS}
        allowed |= {
            "join": metered(_join),
            "replace": metered(_replace),
            "string": metered(lambda value: str(printed(value))),
            "tojson": metered(_to_json),
            "_printed": printed,
            "_weighed": weighed,
        }
        self.filters = allowed
        self.tests = {name: self.tests[name] for name in _TESTS} | {
            name: comparing(cast(Callable[..., Any], self.tests[name])) for name in _COMPARING_TESTS
        }
        self.globals = {
            "_tick": step,
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _fixed_date,
        }

    def wrap_str_format(self, value: Any) -> None:
        """No formatting: a width in a format makes a text of any length."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, Mapping):
            return attr in _MAPPING_METHODS
        if isinstance(obj, list | tuple):
            return attr in _SEQUENCE_METHODS
        # Numbers need no methods; `loop`, macros and namespaces pass by the sandbox's rules.
        return not isinstance(obj, int | float | bytes)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = obj.__name__
            if name == "replace":
                return meter(_replace(owner, *args, **kwargs))
            if name == "join":
                return meter(_join(args[0], owner))
        return meter(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator_name: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        match operator_name:
            case "+" if not numbers:
                spend(size(left) + size(right))
            case "*" if not numbers:
                spend_repetition(left, right)
            case "%" if not numbers:
                raise TemplateError("the chat template formats text with %")
            case "**":
                raise TemplateError("the chat template raises to a power")
            case _:
                pass
        result = _BINARY[operator_name](left, right)
        if isinstance(result, int) and abs(result) > MAX_INTEGER:
            raise TemplateError("the chat template computes with a number over 63 bits")
        return result


_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _replace(text: object, old: object, new: object, count: Any = None) -> str:
    """`str.replace` and the filter of the same name."""
    whole, part, other = str(printed(text)), str(old), str(new)
    times = whole.count(part)
    if count is not None and int(count) >= 0:
        times = min(times, int(count))
    spend(len(whole) + times * len(other))
    return whole.replace(part, other, times)


def _join(items: Iterable[Any], separator: Any = "", attribute: Any = None) -> str:
    """`str.join` and the filter of the same name."""
    if attribute is not None:
        raise TemplateError("the chat template joins by an attribute")
    glue = str(separator)
    pieces: list[str] = []
    for item in items:
        pieces.append(str(printed(item)))
        spend(len(glue))
    return glue.join(pieces)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as hub templates expect it: not escaped for HTML, not ASCII only."""
    if isinstance(value, Undefined):
        raise TemplateError("the chat template prints an undefined value as JSON")
    if indent is not None and not 0 <= int(indent) <= MAX_INDENT:
        raise TemplateError(f"the chat template indents JSON by more than {MAX_INDENT}")
    return json.dumps(
        printed(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _fixed_date(pattern: str) -> str:
    # A width such as `%999999999d` would make a text of that length.
    if len(pattern) > MAX_DATE_PATTERN or not re.fullmatch(r"(%-?[A-Za-z%]|[^%])*", pattern):
        raise TemplateError("the chat template prints a date in an unusual way")
    return _FIXED_DAY.strftime(pattern)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(f"the chat template refuses the conversation: {message!s:.300}")
