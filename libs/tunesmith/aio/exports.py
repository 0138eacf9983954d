"""Exports: one more GGUF of an adapter that the hub holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.aio.connection import Connection
from tunesmith.aio.io import sleep
from tunesmith.api.export.v1 import export_pb2, export_service_pb2
from tunesmith.errors import from_fault
from tunesmith.names import artifact_name, full_name, new_request_id

# Seconds between polls of an export: short at first, for small models, then longer.
FIRST_POLL_SECONDS = 0.2
LONGEST_POLL_SECONDS = 5.0
ENDED = frozenset(
    {
        export_pb2.EXPORT_STATE_COMPLETED,
        export_pb2.EXPORT_STATE_FAILED,
        export_pb2.EXPORT_STATE_CANCELLED,
    }
)


class Exports:
    """One more GGUF of adapters that the hub holds: any type, at any time, free of charge."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._project = connection.credentials.project

    async def create(
        self,
        artifact: str,
        quantization: str = "",
        *,
        replace: bool = False,
        hub_token: str = "",
        request_id: str = "",
    ) -> export_pb2.Export:
        """Queue an export; one of the same type that is under way is the answer.

        Args:
            artifact: a hub entry, or the run that made it.
            quantization: for example `Q8_0`; default `Q4_K_M`.
            replace: export a type again that exists already.
            hub_token: for a gated or private base model.
        Raises:
            TunesmithError: EXPORT_EXISTS, EXPORT_ADAPTER_MISSING, QUOTA_ARTIFACTS_EXCEEDED.
        """
        request = export_service_pb2.CreateExportRequest(
            request_id=request_id or new_request_id(),
            artifact=artifact_name(self._project, artifact),
            quantization=quantization,
            replace=replace,
            hub_token=hub_token,
        )
        answer = await self._connection.call(request, export_service_pb2.CreateExportResponse)
        return answer.export

    async def get(self, export: str) -> export_pb2.Export:
        """One export by id or name."""
        request = export_service_pb2.GetExportRequest(name=self._name(export))
        answer = await self._connection.call(request, export_service_pb2.GetExportResponse)
        return answer.export

    async def list(
        self, *, artifact: str = "", limit: int | None = None
    ) -> Sequence[export_pb2.Export]:
        """Exports, newest first; of one hub entry where it is named."""
        return await self._connection.pages(
            export_service_pb2.ListExportsRequest(
                parent=f"projects/{self._project}",
                artifact=artifact_name(self._project, artifact) if artifact else "",
            ),
            export_service_pb2.ListExportsResponse,
            lambda page: page.exports,
            limit=limit,
        )

    async def wait(
        self, export: str, *, on_change: Callable[[export_pb2.Export], None] | None = None
    ) -> export_pb2.Export:
        """The export, once it has ended; a cancelled one is an answer as well.

        Args:
            on_change: called for each new state and activity.
        Raises:
            RunFailedError: it ended in FAILED.
        """
        seconds, seen = FIRST_POLL_SECONDS, None
        while True:
            found = await self.get(export)
            status = (found.state, found.attempt, found.activity.text, found.activity.percent)
            if on_change and status != seen:
                on_change(found)
            seen = status
            if found.state == export_pb2.EXPORT_STATE_FAILED:
                raise from_fault(found.fault)
            if found.state in ENDED:
                return found
            await sleep(seconds)
            seconds = min(1.5 * seconds, LONGEST_POLL_SECONDS)

    async def cancel(self, export: str, *, request_id: str = "") -> export_pb2.Export:
        """End an export that has not ended; the hub entry stays as it is."""
        request = export_service_pb2.CancelExportRequest(
            request_id=request_id or new_request_id(), name=self._name(export)
        )
        answer = await self._connection.call(request, export_service_pb2.CancelExportResponse)
        return answer.export

    def _name(self, export: str) -> str:
        return full_name(self._project, "exports", export)
