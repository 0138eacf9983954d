"""Tunesmith's SDK and CLI: what users and other services install.

from tunesmith import Client

with Client() as client:
    client.datasets.push("habit.jsonl")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.aio import AsyncClient
    from tunesmith.client import Client
    from tunesmith.credentials import Credentials
    from tunesmith.errors import TunesmithError

__all__ = ["AsyncClient", "Client", "Credentials", "TunesmithError"]

# Services import only `tunesmith.api`; the client is imported on first use.
_HOMES = {
    "AsyncClient": "tunesmith.aio",
    "Client": "tunesmith.client",
    "Credentials": "tunesmith.credentials",
    "TunesmithError": "tunesmith.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
