"""Rows of exports and of what stored adapters were made from.

Whoever changes an export locks its row first. No transaction locks a run and an export.
"""

from collections.abc import Sequence
from datetime import datetime

from chassis import outbox
from chassis.outbox import OutboxRow
from chassis.postgres import Connection, Queries
from lexicon.faults import Fault, FaultCode
from scheduler import rows
from scheduler.domain.activity import Activity
from scheduler.domain.exports import Export, Source
from scheduler.domain.tasks import RunFault
from scheduler.rows import EXPORT_TIER, project_of
from scheduler.task_store import TaskRows


class ExportRows:
    """What can be read and written of exports in one transaction."""

    def __init__(self, connection: Connection, queries: Queries, tasks: TaskRows) -> None:
        self._connection = connection
        self._queries = queries
        self._tasks = tasks

    async def source(self, artifact: str) -> Source | None:
        """What the adapter of a hub entry was made from; None before its run has ended."""
        row = await self._connection.fetchrow(self._queries["export_source"], artifact)
        if row is None:
            return None
        return Source(**{**row, "losses": tuple(row["losses"])})

    async def insert(self, export: Export, *, outgoing: OutboxRow) -> None:
        """Writes a new export with its task and its first event, as it goes out."""
        await self._connection.execute(
            self._queries["insert_export"],
            export.name,
            project_of(export.name),
            export.artifact,
            export.run,
            export.base_model,
            export.quantization,
            export.traceparent,
            export.create_time,
        )
        await self._tasks.put(export.name, export.task, tier=EXPORT_TIER)
        await outbox.append(self._connection, [outgoing])

    async def commit(self, after: Export, *, outgoing: Sequence[OutboxRow]) -> None:
        """Writes what a decision made of an export, and its event when there is one."""
        await self._connection.execute(
            self._queries["update_export"],
            after.name,
            after.state,
            after.sequence,
            rows.encoded(after.fault),
            after.proof,
            after.file,
            after.update_time,
            after.end_time,
            rows.encoded(after.activity),
        )
        await self._tasks.put(after.name, after.task, tier=EXPORT_TIER)
        if after.has_ended:
            await self._connection.execute(self._queries["note_end"], after.name, b"")
        if outgoing:
            await outbox.append(self._connection, outgoing)

    async def read(self, name: str) -> tuple[Export, datetime]:
        """An export and the time.

        Raises:
            Fault: EXPORT_NOT_FOUND.
        """
        row = await self._connection.fetchrow(self._queries["export"], name)
        if row is None:
            raise Fault(FaultCode.EXPORT_NOT_FOUND, export=name)
        return _export_of(row), row["now"]

    async def lock(self, name: str) -> tuple[Export, datetime]:
        """An export that nobody else changes until the end of the transaction, and the time.

        Raises:
            Fault: EXPORT_NOT_FOUND.
        """
        await self._connection.fetchval(self._queries["lock_export"], name)
        return await self.read(name)

    async def lock_if_free(self, name: str) -> tuple[Export, datetime] | None:
        """The same, or None when it is in other hands."""
        query = self._queries["lock_export_if_free"]
        if await self._connection.fetchval(query, name) is None:
            return None
        return await self.read(name)

    async def open_of_type(self, artifact: str, quantization: str) -> Export | None:
        """The export of a type that is under way."""
        query = self._queries["open_export_of_type"]
        name = await self._connection.fetchval(query, artifact, quantization)
        return None if name is None else (await self.read(name))[0]

    async def page(
        self, project: str, *, before: int, artifact: str, size: int
    ) -> tuple[list[Export], list[int]]:
        """Exports newest first with their positions."""
        query = self._queries["page_of_exports"]
        found = await self._connection.fetch(query, project, before, artifact, size)
        return [_export_of(row) for row in found], [row["position"] for row in found]


def _export_of(row: rows.Row) -> Export:
    return Export(
        name=row["name"],
        artifact=row["artifact"],
        run=row["run"],
        base_model=row["base_model"],
        quantization=row["quantization"],
        task=rows.task_of(row),
        sequence=row["sequence"],
        fault=rows.decoded(row["fault"], RunFault),
        proof=row["proof"],
        file=row["file"],
        activity=rows.decoded(row["activity"], Activity),
        create_time=row["create_time"],
        update_time=row["update_time"],
        end_time=row["end_time"],
        traceparent=row["traceparent"],
    )
