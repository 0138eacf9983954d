"""A jail for chat templates, which are programs that strangers wrote.

Jinja's immutable sandbox keeps a template from reaching Python. This adds what it leaves open: a
budget of steps, produced characters and time, and an allow-list of filters, globals and methods
whose cost is known. Everything that makes text spends from the budget before or as it is made.
"""

import json
import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE_CHARACTERS = 1 << 19
MAX_STEPS = 200_000
MAX_PRODUCED_CHARACTERS = 32 << 20
MAX_OUTPUT_CHARACTERS = 16 << 20
# Of the processor: a busy machine must not refuse what an idle one takes.
MAX_SECONDS = 2.0
# Looking at one element of a structure costs as much time as making this much text.
ELEMENT_CHARACTERS = 32
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


class TemplateError(Exception):
    """A template that cannot be compiled, or that a render has to stop."""


class TemplateRefusal(TemplateError):
    """What a template itself says of a conversation that it does not take."""


@dataclass(slots=True, kw_only=True)
class _Budget:
    """What one render may still spend."""

    deadline: float
    steps: int = MAX_STEPS
    characters: int = MAX_PRODUCED_CHARACTERS

    def step(self) -> str:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateError(f"the chat template takes more than {MAX_STEPS} steps")
        if time.thread_time() > self.deadline:
            raise TemplateError(f"the chat template takes longer than {MAX_SECONDS:g} s")
        return ""

    def spend(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise TemplateError(
                f"the chat template makes more than {MAX_PRODUCED_CHARACTERS} characters"
            )


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

_budget: ContextVar[_Budget] = ContextVar("template_budget")


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled template."""

    template: jinja2.Template

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of the variables.

        Raises:
            TemplateError: The template refuses its input, fails, or spends too much.
        """
        token = _budget.set(_Budget(deadline=time.thread_time() + MAX_SECONDS))
        pieces: list[str] = []
        length = 0
        try:
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
        finally:
            _budget.reset(token)
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
            finalize=_printed,
        )
        allowed = {name: _metered(self.filters[name]) for name in _FILTERS}
        allowed |= {name: _comparing(self.filters[name]) for name in _COMPARING_FILTERS}
        allowed |= {
            "join": _metered(_join),
            "replace": _metered(_replace),
            "string": _metered(lambda value: str(_printed(value))),
            "tojson": _metered(_to_json),
            "_printed": _printed,
            "_weighed": _weighed,
        }
        self.filters = allowed
        self.tests = {name: self.tests[name] for name in _TESTS} | {
            name: _comparing(cast(Callable[..., Any], self.tests[name]))
            for name in _COMPARING_TESTS
        }
        self.globals = {
            "_tick": lambda: _budget.get().step(),
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
                return _meter(_replace(owner, *args, **kwargs))
            if name == "join":
                return _meter(_join(args[0], owner))
        return _meter(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator_name: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        match operator_name:
            case "+" if not numbers:
                _budget.get().spend(_size(left) + _size(right))
            case "*" if not numbers:
                _spend_repetition(left, right)
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


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


def _meter(value: Any) -> Any:
    """Charges for what a call made; iterators are drawn from under the loop's own steps."""
    _budget.get().step()
    _budget.get().spend(_size(value))
    return value


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    def metered(*args: Any, **kwargs: Any) -> Any:
        return _meter(function(*args, **kwargs))

    return _keep_mark(function, metered)


def _comparing(function: Callable[..., Any]) -> Callable[..., Any]:
    def weighed(*args: Any, **kwargs: Any) -> Any:
        # Iterators are made lists first: what is weighed must be what is compared.
        return function(*(_weighed(_settled(arg)) for arg in args), **kwargs)

    return _keep_mark(function, _metered(_keep_mark(function, weighed)))


def _keep_mark(source: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja passes the context to functions that carry its mark."""
    if hasattr(source, "jinja_pass_arg"):
        vars(target)["jinja_pass_arg"] = source.jinja_pass_arg
    return target


def _settled(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def _printed(value: Any) -> Any:
    """The value after charging for its text, shared parts as often as they would be printed."""
    budget = _budget.get(None)
    # Without a budget the compiler folds a constant that is in the source.
    if budget is not None:
        _walk(value, budget, characters_per_unit=1)
    return value


def _weighed(value: Any) -> Any:
    """The value after charging for comparing it; the machine compares texts fast."""
    budget = _budget.get(None)
    if budget is not None:
        _walk(value, budget, characters_per_unit=64)
    return value


def _walk(value: Any, budget: _Budget, *, characters_per_unit: int) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            budget.spend(1 + len(item) // characters_per_unit)
            continue
        budget.spend(ELEMENT_CHARACTERS)
        if isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())


def _spend_repetition(left: Any, right: Any) -> None:
    times, text = (left, right) if isinstance(left, int) else (right, left)
    if not isinstance(times, int) or not isinstance(text, str):
        raise TemplateError("the chat template multiplies what is neither number nor text")
    _budget.get().spend(max(0, times) * len(text))


def _replace(text: object, old: object, new: object, count: Any = None) -> str:
    """`str.replace` and the filter of the same name."""
    whole, part, other = str(_printed(text)), str(old), str(new)
    times = whole.count(part)
    if count is not None and int(count) >= 0:
        times = min(times, int(count))
    _budget.get().spend(len(whole) + times * len(other))
    return whole.replace(part, other, times)


def _join(items: Iterable[Any], separator: Any = "", attribute: Any = None) -> str:
    """`str.join` and the filter of the same name."""
    if attribute is not None:
        raise TemplateError("the chat template joins by an attribute")
    glue = str(separator)
    pieces: list[str] = []
    for item in items:
        pieces.append(str(_printed(item)))
        _budget.get().spend(len(glue))
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
        _printed(value),
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
