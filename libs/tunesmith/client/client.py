# Generated from tunesmith/aio/client.py by `make client`; do not edit.
"""The client: credentials, one connection, and the resources that share it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from tunesmith.client.artifacts import Artifacts
from tunesmith.client.billing import Billing, Nodes
from tunesmith.client.connection import Connection
from tunesmith.client.datasets import Datasets
from tunesmith.client.exports import Exports
from tunesmith.client.runs import Runs
from tunesmith.credentials import Credentials, resolve
from tunesmith.transport import RetryPolicy


class Client:
    """A connection to a platform. Use it as a context manager, or close it.

    Args:
        credentials: where and who; default $TUNESMITH_CREDENTIALS or the default state folder.
        address: `host:port` or `https://host:port` in place of the credentials' own.
        token: token in place of the credentials' own.
        project: project in place of the credentials' own.
        retry: when an unanswered call is repeated.
    """

    def __init__(
        self,
        credentials: Credentials | Path | None = None,
        *,
        address: str = "",
        token: str = "",
        project: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        self.credentials = resolve(credentials, address=address, token=token, project=project)
        self.retry = retry or RetryPolicy()
        self._connection = Connection(self.credentials, self.retry)
        self.runs = Runs(self._connection)
        self.datasets = Datasets(self._connection)
        self.artifacts = Artifacts(self._connection)
        self.exports = Exports(self._connection)
        self.billing = Billing(self._connection)
        self.nodes = Nodes(self._connection)

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
