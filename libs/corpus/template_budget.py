"""What one render of a chat template may spend: steps, produced characters and time.

Everything that makes text or looks at a structure spends before or as it is made, so that a program
of a stranger stops before it has cost much.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 200_000
MAX_PRODUCED_CHARACTERS = 32 << 20
# Of the processor: a busy machine must not refuse what an idle one takes.
MAX_SECONDS = 2.0
# Looking at one element of a structure costs as much time as making this much text.
ELEMENT_CHARACTERS = 32


class TemplateError(Exception):
    """A template that cannot be compiled, or that a render has to stop."""


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


_budget: ContextVar[_Budget] = ContextVar("template_budget")


@contextmanager
def budget() -> Iterator[None]:
    """While it lasts, what templates do is charged to a fresh budget."""
    token = _budget.set(_Budget(deadline=time.thread_time() + MAX_SECONDS))
    try:
        yield
    finally:
        _budget.reset(token)


def step() -> str:
    """Charges for one round of a loop or one call; nothing to print.

    Raises:
        TemplateError: the budget is spent, in steps or in time.
    """
    return _budget.get().step()


def spend(characters: int) -> None:
    """Charges for text, or for what costs as much.

    Raises:
        TemplateError: the budget is spent.
    """
    _budget.get().spend(characters)


def size(value: object) -> int:
    """How much a value adds where it is put to another one, in characters or elements."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


def meter(value: Any) -> Any:
    """Charges for what a call made; iterators are drawn from under the loop's own steps."""
    step()
    spend(size(value))
    return value


def metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, charging for what it gives."""

    def charging(*args: Any, **kwargs: Any) -> Any:
        return meter(function(*args, **kwargs))

    return _keep_mark(function, charging)


def comparing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, charging for what it compares as well."""

    def charging(*args: Any, **kwargs: Any) -> Any:
        # Iterators are made lists first: what is weighed must be what is compared.
        return function(*(weighed(_settled(arg)) for arg in args), **kwargs)

    return _keep_mark(function, metered(_keep_mark(function, charging)))


def _keep_mark(source: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja passes the context to functions that carry its mark."""
    if hasattr(source, "jinja_pass_arg"):
        vars(target)["jinja_pass_arg"] = source.jinja_pass_arg
    return target


def _settled(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def printed(value: Any) -> Any:
    """The value after charging for its text, shared parts as often as they would be printed."""
    current = _budget.get(None)
    # Without a budget the compiler folds a constant that is in the source.
    if current is not None:
        _walk(value, current, characters_per_unit=1)
    return value


def weighed(value: Any) -> Any:
    """The value after charging for comparing it; the machine compares texts fast."""
    current = _budget.get(None)
    if current is not None:
        _walk(value, current, characters_per_unit=64)
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


def spend_repetition(left: Any, right: Any) -> None:
    """Charges for a text that is multiplied.

    Raises:
        TemplateError: the budget is spent, or it is no text.
    """
    times, text = (left, right) if isinstance(left, int) else (right, left)
    if not isinstance(times, int) or not isinstance(text, str):
        raise TemplateError("the chat template multiplies what is neither number nor text")
    spend(max(0, times) * len(text))
