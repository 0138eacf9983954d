"""Shared by every command: options, the client, questions, and the handling of errors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.prompt import Confirm
from typer.core import TyperGroup

from tunesmith.cli import output
from tunesmith.client import Client
from tunesmith.errors import InputError, TunesmithError

INTERRUPTED_EXIT_CODE = 130
CANCELLED_EXIT_CODE = 10
TRACEBACK_ENVIRONMENT = "TUNESMITH_TRACEBACK"


@dataclass(slots=True, kw_only=True)
class Settings:
    """Options before the command.

    Attributes:
        sleep: waits for so many seconds between two tries.
    """

    credentials: Path | None = None
    project: str = ""
    as_json: bool = False
    sleep: Callable[[float], None] = time.sleep


def settings() -> Settings:
    """The settings of this invocation."""
    return _SETTINGS


def _remember_json(value: bool) -> bool:
    _SETTINGS.as_json = _SETTINGS.as_json or value
    return _SETTINGS.as_json


_SETTINGS = Settings()

Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for programs.", callback=_remember_json),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; the answer is yes.")]


@contextmanager
def connected() -> Iterator[Client]:
    """A client for this invocation."""
    with Client(_SETTINGS.credentials, project=_SETTINGS.project) as client:
        yield client


def confirm(question: str, *, yes: bool) -> None:
    """Ask before an action that costs or cannot be undone.

    Raises:
        InputError: there is no terminal to answer on.
        typer.Exit: the answer was no; exit code 0, nothing was done.
    """
    if yes:
        return
    if _SETTINGS.as_json or not is_interactive():
        raise InputError(
            "INPUT_FIELD_MISSING",
            f"{question} Nobody is here to answer.",
            remedy="Add --yes to confirm beforehand.",
        )
    screen = output.error_console()
    if not Confirm.ask(question, console=screen, default=False):
        screen.print("Nothing was done.")
        raise typer.Exit(0)


def is_interactive() -> bool:
    """Whether a terminal is there to answer questions."""
    return sys.stdin.isatty()


class Edge(TyperGroup):
    """The outermost command, which turns errors into an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command and turn exceptions into an exit code."""
        try:
            return super().invoke(ctx)
        except TunesmithError as error:
            output.print_error(error, as_json=_SETTINGS.as_json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
        except BrokenPipeError:
            # The reader of a pipe has closed it, which is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith("typer.") or os.environ.get(TRACEBACK_ENVIRONMENT):
                raise
            output.print_error(unexpected(error), as_json=_SETTINGS.as_json)
            raise typer.Exit(TunesmithError.exit_code) from None


def unexpected(error: Exception) -> TunesmithError:
    """The message for an internal error."""
    text = str(error).strip().partition("\n")[0]
    return TunesmithError(
        "INTERNAL_UNEXPECTED",
        f"{type(error).__name__}: {text}" if text else type(error).__name__,
        remedy=f"Set {TRACEBACK_ENVIRONMENT}=1 and try again to see where it happened.",
    )
