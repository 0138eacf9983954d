"""Rows of tasks and leases, of every kind and owner.

A task is written in the transaction that changes its owner, under the lock of the owner's row.
"""

from collections.abc import Sequence
from typing import Any, Final

from chassis.postgres import Connection, Queries
from scheduler import rows
from scheduler.domain.tasks import Lease, Task, TaskState

# Channel of NOTIFY: tasks that can be leased.
TASKS_CHANNEL: Final = "scheduler_tasks"

# Tasks that a lease call looks at, leases that one sweep takes.
MAX_CANDIDATES: Final = 32
MAX_SWEEP: Final = 100


class TaskRows:
    """What can be read and written of tasks in one transaction; a lease comes with its owner."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries

    async def put(self, owner: str, task: Task, *, tier: str) -> None:
        """Writes a task and its newest lease; who waits for work hears of one that is queued."""
        if task.newest is not None:
            await self._execute("put_lease", *rows.lease_values(owner, task.newest))
        await self._execute("put_task", *rows.task_values(owner, task, tier=tier))
        if task.state is TaskState.QUEUED:
            await self._execute("wake", TASKS_CHANNEL, task.kind)

    async def queued(self, kind: str, *, tier: str) -> list[str]:
        """The owners of the first tasks of a queue."""
        query = self._queries["queued_tasks"]
        found = await self._connection.fetch(query, kind, tier, MAX_CANDIDATES)
        return [row["owner"] for row in found]

    async def lease(self, lease_id: str) -> tuple[Lease, str] | None:
        """A lease by its id."""
        found = await self._leases("lease_by_id", lease_id)
        return found[0] if found else None

    async def lease_of_node(self, node: str, incarnation: str) -> tuple[Lease, str] | None:
        """The lease that a process of a node holds."""
        found = await self._leases("open_lease_of_node", node, incarnation)
        return found[0] if found else None

    async def leases_of_old(self, node: str, incarnation: str) -> list[tuple[Lease, str]]:
        """Leases that earlier processes of a node hold."""
        return await self._leases("leases_of_old_incarnations", node, incarnation)

    async def expired_leases(self) -> list[tuple[Lease, str]]:
        """Leases whose node was silent for too long."""
        return await self._leases("expired_leases", MAX_SWEEP)

    async def _leases(self, query: str, *arguments: Any) -> list[tuple[Lease, str]]:
        found: Sequence[rows.Row] = await self._connection.fetch(self._queries[query], *arguments)
        return [(rows.lease_of(row), row["owner"]) for row in found]

    async def _execute(self, query: str, *arguments: Any) -> None:
        await self._connection.execute(self._queries[query], *arguments)
