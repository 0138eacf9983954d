"""The user's token for the model hub: from an option, HF_TOKEN, or a stored login.

It is sent only for a model that needs it: the first request is made without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from tunesmith.cli import output
from tunesmith.cli.session import settings
from tunesmith.errors import TunesmithError

Result = TypeVar("Result")

HfToken = Annotated[
    str,
    typer.Option(
        "--hf-token",
        help="Token for a gated or private model. Better set HF_TOKEN, or log in with `hf auth "
        "login`: a command line can be read by others.",
    ),
]
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LOAD_FAILED = "DEP_MODEL_LOAD_FAILED"
# How the platform words refusals of the hub.
REFUSALS = ("(HTTP 401)", "(HTTP 403)")


def with_login(ask: Callable[[str], Result], *, given: str) -> tuple[Result, str]:
    """The answer of the platform, and the token that was used.

    Args:
        ask: calls the platform with a token, or with an empty text for none.
        given: the token that the user typed; used at once.
    Raises:
        TunesmithError: the refusal, with the token if there is one.
    """
    if given:
        return ask(given), given
    try:
        return ask(""), ""
    except TunesmithError as refused:
        token, place = found_login(os.environ)
        if not token or not _needs_login(refused):
            raise
        if not settings().as_json:
            words = f"The model hub requires a login; using the token of {place}."
            output.error_console().print(words, style="dim", markup=False, highlight=False)
        return ask(token), token


def found_login(environ: Mapping[str, str]) -> tuple[str, str]:
    """The token that the hub's own tools would use, and where it is; both empty without one.

    Source: huggingface_hub, environment variables HF_TOKEN, HF_TOKEN_PATH, HF_HOME.
    """
    for name in VARIABLES:
        if token := environ.get(name, "").strip():
            return token, name
    cache = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "~") / ".cache")
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return "", ""
    return (token, str(path)) if token else ("", "")


def _needs_login(refused: TunesmithError) -> bool:
    """Whether the hub refused the model to an anonymous caller."""
    texts = [f"{refused.code}: {refused.message}", *refused.metadata.values()]
    return any(LOAD_FAILED in text and _has_refusal(text) for text in texts)


def _has_refusal(text: str) -> bool:
    return any(words in text for words in REFUSALS)
