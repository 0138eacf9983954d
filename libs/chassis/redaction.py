"""Redact secrets in logs, events and answers, by their shapes.

A path of the machine is no secret, and operators need it in their logs; but users cannot use it,
and it shows how the machine is set up. `hide_paths` keeps only the file's name.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# Deeper values are shown as their masked repr; a log line has no reason to nest further.
DEPTH_MAX = 6

# Each shape is published by whoever issues the token; the lengths are lower bounds, so that a
# longer form of tomorrow is caught as well.
_SHAPES = re.compile(
    r"""
    (?P<bearer>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}      # HTTP authorization
    | \beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*  # JSON Web Tokens
    | \bhf_[A-Za-z0-9]{12,}                                      # Hugging Face
    | \bsk-[A-Za-z0-9_-]{12,}                                    # OpenAI and look-alikes
    | \b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{16,}               # GitHub
    | \bglpat-[A-Za-z0-9_-]{16,}                                 # GitLab
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}                           # Slack
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                              # AWS key ids
    | \bAIza[A-Za-z0-9_-]{30,}                                   # Google API keys
    | \bnpm_[A-Za-z0-9]{30,}                                     # npm
    | \bdckr_pat_[A-Za-z0-9_-]{16,}                              # Docker
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    | (?P<userinfo>://[^\s/:@'"]*:)[^\s/@'"]+(?=@)               # passwords in URLs
    | (?P<query>[?&](?:X-Amz-Signature|X-Amz-Security-Token|signature|sig|token|key)=)[^\s&'"]+
    | (?P<pair>\b(?:password|passwd|secret|api_?key|signing_?key|token)["']?\s*[=:]\s*["']?)
      [^\s"',;&}]{4,}
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
HIDDEN_FOLDER = "…/"
# A path in quotes, as the system's errors have it, may hold anything; one without ends at a blank
# or a mark. What goes on from a word or another path is none: a URL, a name, a relative path. A
# method of the contract has the form of a path, and is not one.
_PATHS = re.compile(
    r"""
    (?P<quote>["'])(?:file://)?(?:~?/|[A-Za-z]:[\\/])[^"'\n]*[\\/](?P<quoted>[^"'\n\\/]*)(?P=quote)
    | (?<![\w.~/-])(?:file://)?~?/(?!tunesmith\.|grpc\.)(?:[^\s/"'`:;,()<>\[\]{}|*?\\]+/)+
      (?P<name>[^\s/"'`:;,()<>\[\]{}|*?\\]*)
    | \b[A-Za-z]:\\(?:[^\s\\"'`:;,()<>\[\]{}|*?]+\\)+(?P<other>[^\s\\"'`:;,()<>\[\]{}|*?]*)
    """,
    re.VERBOSE,
)
_SECRET_NAMES = re.compile(
    r"authorization|password|passwd|secret|credential|api_?key|signing_?key|(?:^|_)token$",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced by `***`."""
    return _SHAPES.sub(_masked, text)


def hide_paths(text: str) -> str:
    """The text with the name alone of every file that it gives an absolute path of."""
    return _PATHS.sub(_named, text)


def redact_value(value: Any, *, name: str = "", depth: int = 0) -> Any:
    """A value without secrets: strings inside are redacted, values of secret names masked."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if name and _SECRET_NAMES.search(name):
        return MASK
    if isinstance(value, str):
        return redact(value)
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        return {
            str(key): redact_value(part, name=str(key), depth=depth + 1)
            for key, part in value.items()
        }
    if depth < DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [redact_value(part, depth=depth + 1) for part in value]
    return redact(str(value))


def _named(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    name = match["quoted"] or match["name"] or match["other"] or ""
    return f"{quote}{HIDDEN_FOLDER}{name}{quote}"


def _masked(match: re.Match[str]) -> str:
    kept = next((group for group in match.groups() if group is not None), "")
    return kept + MASK
