"""Rows of exports and of what stored adapters were made from; each method is one statement or two.

Whoever changes an export locks its row first. No transaction locks a run and an export.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from chassis import outbox
from chassis.postgres import Connection, Queries
from lexicon.faults import Fault, FaultCode
from scheduler import rows, wire_exports
from scheduler.domain.activity import Activity
from scheduler.domain.exports import Export, ExportLease, ExportState, Source
from scheduler.domain.run import Outcome, RunFault
from scheduler.rows import project_of

# Exports that a lease call looks at, and that one sweep takes.
MAX_CANDIDATES: Final = 32
MAX_SWEEP: Final = 100


class ExportRows:
    """What can be read and written of exports in one transaction."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries

    async def source(self, artifact: str) -> Source | None:
        """What the adapter of a hub entry was made from; None before its run has ended."""
        row = await self._connection.fetchrow(self._queries["export_source"], artifact)
        if row is None:
            return None
        return Source(**{**row, "losses": tuple(row["losses"])})

    async def insert(self, export: Export, *, sealed_token: bytes | None) -> None:
        """Writes a new export with its first event."""
        await self._connection.execute(
            self._queries["insert_export"],
            export.name,
            project_of(export.name),
            export.artifact,
            export.run,
            export.base_model,
            export.quantization,
            export.create_time,
            export.traceparent,
            sealed_token,
        )
        await self._tell(export)

    async def commit(self, before: Export, after: Export) -> None:
        """Writes what a decision made of an export, and its event when there is one."""
        await self._connection.execute(self._queries["update_export"], *_values(after))
        if after.has_ended and not before.has_ended:
            await self._connection.execute(self._queries["note_export_end"], after.name)
        if after.sequence != before.sequence:
            await self._tell(after)

    async def _tell(self, export: Export) -> None:
        await outbox.append(self._connection, [wire_exports.outgoing(export)])

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

    async def lock_of_lease(self, lease_id: str) -> tuple[Export, datetime]:
        """The export whose newest lease it is, locked, and the time.

        Raises:
            Fault: RUN_LEASE_LOST when there is none, or another one is newer.
        """
        query = self._queries["lock_export_of_lease"]
        name = await self._connection.fetchval(query, lease_id)
        if name is None:
            raise Fault(FaultCode.RUN_LEASE_LOST)
        export, now = await self.read(name)
        if export.lease is None or export.lease.lease_id != lease_id:
            raise Fault(FaultCode.RUN_LEASE_LOST)
        return export, now

    async def open_of_type(self, artifact: str, quantization: str) -> Export | None:
        """The export of a type that is under way."""
        query = self._queries["open_export_of_type"]
        row = await self._connection.fetchrow(query, artifact, quantization)
        return None if row is None else _export_of(row)

    async def page(
        self, project: str, *, before: int, artifact: str, size: int
    ) -> tuple[list[Export], list[int]]:
        """Exports newest first with their positions."""
        query = self._queries["page_of_exports"]
        found = await self._connection.fetch(query, project, before, artifact, size)
        return [_export_of(row) for row in found], [row["position"] for row in found]

    async def queued(self) -> list[str]:
        """The first exports of the queue."""
        found = await self._connection.fetch(self._queries["queued_exports"], MAX_CANDIDATES)
        return [row["name"] for row in found]

    async def of_node(self, node: str, incarnation: str) -> str | None:
        """The export that a node works on."""
        query = self._queries["export_of_node"]
        name: str | None = await self._connection.fetchval(query, node, incarnation)
        return name

    async def of_old_incarnations(self, node: str, incarnation: str) -> list[tuple[str, str]]:
        """Exports that earlier processes of a node hold, with their leases."""
        query = self._queries["exports_of_old_incarnations"]
        return _pairs(await self._connection.fetch(query, node, incarnation))

    async def expired(self) -> list[tuple[str, str]]:
        """Exports whose node was silent for too long, with their leases."""
        return _pairs(await self._connection.fetch(self._queries["expired_exports"], MAX_SWEEP))

    async def hub_token(self, name: str) -> bytes | None:
        """The user's sealed token for the model hub."""
        query = self._queries["export_hub_token"]
        sealed: bytes | None = await self._connection.fetchval(query, name)
        return sealed


def _pairs(found: Sequence[rows.Row]) -> list[tuple[str, str]]:
    return [(row["name"], row["lease_id"]) for row in found]


def _export_of(row: rows.Row) -> Export:
    return Export(
        name=row["name"],
        artifact=row["artifact"],
        run=row["run"],
        base_model=row["base_model"],
        quantization=row["quantization"],
        state=ExportState(row["state"]),
        sequence=row["sequence"],
        failures=row["failures"],
        fencing_epoch=row["fencing_epoch"],
        not_before=row["not_before"],
        lease=_lease_of(row),
        fault=rows.decoded(row["fault"], RunFault),
        proof=row["proof"],
        file=row["file"],
        activity=rows.decoded(row["activity"], Activity),
        create_time=row["create_time"],
        update_time=row["update_time"],
        end_time=row["end_time"],
        traceparent=row["traceparent"],
    )


def _lease_of(row: rows.Row) -> ExportLease | None:
    if row["lease_id"] is None:
        return None
    return ExportLease(
        lease_id=row["lease_id"],
        node=row["node"],
        incarnation=row["incarnation"],
        attempt=row["attempt"],
        fencing_epoch=row["fencing_epoch"],
        expire_time=row["expire_time"],
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
    )


def _values(export: Export) -> Sequence[Any]:
    """Arguments of `update_export`."""
    lease = export.lease
    return (
        export.name,
        export.state,
        export.sequence,
        export.failures,
        export.fencing_epoch,
        export.not_before,
        lease.lease_id if lease else None,
        lease.node if lease else None,
        lease.incarnation if lease else None,
        lease.attempt if lease else None,
        lease.expire_time if lease else None,
        lease.outcome if lease else None,
        rows.encoded(export.fault),
        export.proof,
        export.file,
        export.update_time,
        export.end_time,
        rows.encoded(export.activity),
    )
