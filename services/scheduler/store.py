"""Rows of the scheduler: each method is one statement or one transaction, and decides nothing.

Whoever changes a run locks its row first and nothing before it, so that transactions cannot wait
for each other in a circle. Times are those of the database.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from chassis import idempotency, outbox
from chassis.outbox import OutboxRow
from chassis.postgres import Connection, Pool, Queries
from lexicon.faults import Fault, FaultCode
from scheduler import rows
from scheduler.domain import alerts, leftovers
from scheduler.domain import events as domain_events
from scheduler.domain.alerts import AlertChannel, Delivery
from scheduler.domain.effects import Decision
from scheduler.domain.leftovers import Superseded, Sweep
from scheduler.domain.node import NodeRecord
from scheduler.domain.queueing import Candidate
from scheduler.domain.run import Labels, Record, State, Submission
from scheduler.domain.tasks import TaskKind
from scheduler.export_store import ExportRows
from scheduler.task_store import MAX_CANDIDATES, MAX_SWEEP, TASKS_CHANNEL, TaskRows

# Channel of NOTIFY: runs with new events.
RUNS_CHANNEL: Final = "scheduler_runs"

# Nodes of a tier that are looked at to find one that can do a run.
MAX_NODES: Final = 1000
# Losses that a model card shows.
MAX_LOSSES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A submission between its check and its run."""

    run: str
    abandoned: bool
    create_time: datetime


class Transaction:
    """What can be read and written in one transaction."""

    def __init__(self, connection: Connection, queries: Queries) -> None:
        self._connection = connection
        self._queries = queries
        self.tasks = TaskRows(connection, queries)
        self.exports = ExportRows(connection, queries, self.tasks)
        self.answers = idempotency.Answers(connection)

    async def now(self) -> datetime:
        moment: datetime = await self._connection.fetchval(self._queries["now"])
        return moment

    async def lock_run(self, name: str) -> tuple[Record, datetime]:
        """A run that nobody else changes until the end of the transaction, and the time.

        Raises:
            Fault: RUN_NOT_FOUND.
        """
        await self._connection.fetchval(self._queries["lock_run"], name)
        return await self.read_run(name)

    async def lock_run_if_free(self, name: str) -> tuple[Record, datetime] | None:
        """The same, or None when it has ended or is in other hands."""
        if await self._connection.fetchval(self._queries["lock_run_if_free"], name) is None:
            return None
        return await self.read_run(name)

    async def read_run(self, name: str) -> tuple[Record, datetime]:
        """A run and the time.

        Raises:
            Fault: RUN_NOT_FOUND.
        """
        row = await self._connection.fetchrow(self._queries["read_run"], name)
        if row is None:
            raise Fault(FaultCode.RUN_NOT_FOUND, run=name)
        record = (await self._records([row]))[0]
        if record.run.checkpoint is not None and record.run.state is State.RETRYING:
            earlier = [point.files for point in await self.superseded(name)]
            record = replace(record, earlier=tuple(earlier))
        return record, row["now"]

    async def page_of_runs(
        self, project: str, *, before: int, states: Sequence[str], tag: str, size: int
    ) -> tuple[list[Record], list[int], datetime]:
        """Runs newest first with their positions, and the time."""
        query = self._queries["page_of_runs"]
        found = await self._connection.fetch(query, project, before, list(states), tag, size)
        now = found[0]["now"] if found else await self.now()
        return await self._records(found), [row["position"] for row in found], now

    async def insert_run(
        self,
        decision: Decision,
        submission: Submission,
        labels: Labels,
        *,
        outgoing: Sequence[OutboxRow],
    ) -> None:
        """Writes a new run with its task and its first event.

        Args:
            outgoing: the decision's events as they go out.
        """
        values = rows.new_run_values(decision.after, submission, labels)
        await self._execute("insert_run", *values)
        await self._write_rest(decision, outgoing)

    async def put_hub_token(self, owner: str, sealed: bytes) -> None:
        """Keeps a user's token for the model hub; the end of the run or export deletes it."""
        await self._execute("put_hub_token", owner, sealed)

    async def hub_token(self, owner: str) -> bytes | None:
        sealed: bytes | None = await self._connection.fetchval(self._queries["hub_token"], owner)
        return sealed

    async def commit(self, decision: Decision, *, outgoing: Sequence[OutboxRow]) -> None:
        """Writes a decision: the run guarded by its version, tasks, leases, events.

        Args:
            outgoing: the decision's events as they go out.
        """
        if not decision.changes:
            return
        done = await self._execute("update_run", *rows.run_values(decision.after))
        assert done == "UPDATE 1", f"{decision.after.name} changed under its lock"
        await self._write_rest(decision, outgoing)

    async def _write_rest(self, decision: Decision, outgoing: Sequence[OutboxRow]) -> None:
        run = decision.after
        for task in decision.tasks.values():
            # Exporters are one pool, whatever the tier of the training was.
            tier = run.terms.tier if task.kind == TaskKind.TRAIN else rows.EXPORT_TIER
            await self.tasks.put(run.name, task, tier=tier)
        for metrics in decision.metrics:
            if _is_plotted(metrics.step, metrics.total_steps):
                await self._execute("put_loss", run.name, metrics.step, metrics.loss)
        for event in decision.events:
            if isinstance(event.body, domain_events.Warned):
                body = event.body
                await self._execute(
                    "put_warning", run.name, event.sequence, body.code, body.message, event.time
                )
        if run.has_ended:
            await self._execute("note_end", run.name, run.adapter)
            await self._execute("note_source", run.name, MAX_LOSSES)
        else:
            for point in decision.superseded:
                await self._execute("note_superseded", run.name, point.files)
        assert len(outgoing) == len(decision.events)
        if outgoing:
            await outbox.append(self._connection, outgoing)
            await self._execute("wake", RUNS_CHANNEL, run.name)

    async def put_labels(self, name: str, labels: Labels) -> None:
        await self._execute(
            "update_labels", name, labels.display_name, list(labels.tags), labels.priority
        )

    async def delete_run(self, name: str) -> None:
        """Deletes the record; its events stay."""
        await self._execute("delete_run", name)

    async def training_runs(
        self, age: timedelta, *, age_of_young: timedelta, young: timedelta
    ) -> list[str]:
        """Training runs whose progress was reported so long ago; a shorter age for young runs."""
        query = self._queries["training_runs"]
        found = await self._connection.fetch(query, age, age_of_young, young)
        return [row["run"] for row in found]

    async def candidates(
        self, node: NodeRecord, *, capabilities: Collection[str], limits: Mapping[str, int]
    ) -> list[Candidate]:
        """The first tasks of runs in the queue that a node can do.

        Args:
            limits: how many runs each plan may train at once.
        """
        found = await self._connection.fetch(
            self._queries["candidates"],
            node.kind,
            node.tier,
            list(limits.keys()),
            list(limits.values()),
            MAX_CANDIDATES,
            list(capabilities),
        )
        return [
            Candidate(
                run=row["run"],
                kind=row["kind"],
                priority=row["priority"],
                queue_time=row["queue_time"],
                running_count=row["running_count"],
                concurrency_limit=row["concurrency_limit"],
            )
            for row in found
        ]

    async def lock_project(self, project: str) -> int:
        """Keeps others from leasing for a project; returns how many of its runs train now."""
        await self._execute("lock_project", project)
        count: int = await self._connection.fetchval(self._queries["running_count"], project)
        return count

    async def same_oom_count(self, project: str, fingerprint: str) -> int:
        """Runs of one configuration that ran out of memory."""
        query = self._queries["same_oom_count"]
        count: int = await self._connection.fetchval(query, project, fingerprint)
        return count

    async def losses(self, run: str, *, last_step: int) -> list[float]:
        query = self._queries["losses_of_run"]
        found = await self._connection.fetch(query, run, last_step, MAX_LOSSES)
        return [row["loss"] for row in found]

    async def put_node(self, node: NodeRecord) -> None:
        await self._execute(
            "put_node", node.name, node.incarnation, node.kind, node.tier, node.description
        )

    async def touch_node(
        self, node: str, incarnation: str, temperature_celsius: float | None
    ) -> None:
        await self._execute("touch_node", node, incarnation, temperature_celsius)

    async def read_node(self, name: str) -> NodeRecord | None:
        row = await self._connection.fetchrow(self._queries["read_node"], name)
        return None if row is None else rows.node_of(row)

    async def training_nodes(self, tier: str) -> list[NodeRecord]:
        """The nodes of a tier that train, those heard from last first."""
        found = await self._connection.fetch(self._queries["training_nodes"], tier, MAX_NODES)
        return [rows.node_of(row) for row in found]

    async def page_of_nodes(
        self, *, after: int, size: int
    ) -> tuple[list[NodeRecord], list[int], datetime]:
        """Nodes in the order in which they came, with their positions, and the time."""
        found = await self._connection.fetch(self._queries["page_of_nodes"], after, size)
        now = found[0]["now"] if found else await self.now()
        return [rows.node_of(row) for row in found], [row["position"] for row in found], now

    async def begin_submission(self, project: str, request_id: str, run: str) -> Hold | None:
        """Records a pending submission before money is held; the first of a request stays.

        Returns:
            The pending submission; None when the first one has ended this moment.
        """
        await self._execute("begin_submission", project, request_id, run)
        return await self.lock_submission(project, request_id)

    async def lock_submission(self, project: str, request_id: str) -> Hold | None:
        query = self._queries["lock_submission"]
        row = await self._connection.fetchrow(query, project, request_id)
        return None if row is None else Hold(**row)

    async def end_submission(self, run: str) -> None:
        await self._execute("end_submission", run)

    async def give_up_submission(self, run: str) -> None:
        """Ends a pending submission that became no run; a sweep releases its holds at the hub."""
        await self._execute("give_up_submission", run)

    async def abandon_stale_submissions(self, age: timedelta) -> list[str]:
        """Runs of submissions that nobody follows up; they will never become runs."""
        query = self._queries["abandon_stale_submissions"]
        found = await self._connection.fetch(query, age, MAX_SWEEP)
        return [row["run"] for row in found]

    async def claim_sweep(self) -> Sweep | None:
        """The sweep that has been due for the longest; it is due again later unless it settles."""
        rest, doublings = leftovers.RETRY_REST, leftovers.RETRY_DOUBLINGS
        row = await self._connection.fetchrow(self._queries["claim_sweep"], rest, doublings)
        return None if row is None else Sweep(**row)

    async def settle_sweep(self, sweep: Sweep, *, again_after: timedelta | None) -> None:
        """Records an answered sweep; nothing when another has become due meanwhile."""
        await self._execute("settle_sweep", sweep.run, sweep.due_time, again_after)

    async def superseded(self, run: str) -> list[Superseded]:
        """Superseded checkpoints of a run, newest first."""
        found = await self._connection.fetch(self._queries["superseded_of_run"], run)
        return [Superseded(**row) for row in found]

    async def forget_superseded(self, position: int) -> None:
        await self._execute("forget_superseded", position)

    async def note_alert(
        self, alert_id: str, channels: Sequence[AlertChannel], *, code: str, payload: bytes
    ) -> None:
        """Records an alert for these channels with this transaction."""
        await self._execute("note_alert", alert_id, list(channels), code, payload)

    async def claim_alert(self, channels: Sequence[AlertChannel]) -> Delivery | None:
        """The delivery that has been due for the longest; it is due again later unless settled."""
        rest, doublings = alerts.RETRY_REST, alerts.RETRY_DOUBLINGS
        query = self._queries["claim_alert"]
        row = await self._connection.fetchrow(query, list(channels), rest, doublings)
        return None if row is None else Delivery(**{**row, "channel": AlertChannel(row["channel"])})

    async def settle_alert(self, delivery: Delivery, *, delivered: bool, gives_up: bool) -> None:
        """Records how a try went; one that failed, except the last, is repeated when it is due."""
        await self._execute(
            "settle_alert", delivery.alert_id, delivery.channel, delivered, gives_up
        )

    async def events_of_run(self, run: str, *, after: int, size: int) -> list[bytes]:
        query = self._queries["events_of_run"]
        found = await self._connection.fetch(query, run, after, size)
        return [row["payload"] for row in found]

    async def newest_event(self, run: str) -> tuple[int, str] | None:
        """Sequence and subject of a run's newest event; None without any."""
        row = await self._connection.fetchrow(self._queries["newest_event"], run)
        return None if row is None else (row["sequence"], row["subject"])

    async def _records(self, found: Sequence[rows.Row]) -> list[Record]:
        names = [row["name"] for row in found]
        warnings = await self._by_run("warnings_of_runs", names)
        attempts = await self._by_run("attempts_of_runs", names)
        return [
            rows.record_of(
                row,
                warnings=warnings.get(row["name"], ()),
                attempts=attempts.get(row["name"], ()),
            )
            for row in found
        ]

    async def _by_run(self, query: str, names: list[str]) -> dict[str, list[rows.Row]]:
        grouped: dict[str, list[rows.Row]] = {}
        if names:
            for row in await self._connection.fetch(self._queries[query], names):
                grouped.setdefault(row["run"], []).append(row)
        return grouped

    async def _execute(self, query: str, *arguments: Any) -> str:
        status: str = await self._connection.execute(self._queries[query], *arguments)
        return status


class Store:
    """The scheduler's schema."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries.load("scheduler")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction: committed at the end of the block, undone when it raises."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield Transaction(connection, self._queries)

    async def events_of_all(self, cursor: str, *, limit: int) -> tuple[list[bytes], str]:
        """Events of all runs after a cursor in the order of storing, and the cursor after them."""
        async with self._pool.acquire() as connection:
            return await outbox.read_after(connection, cursor, limit=limit)

    async def listen(self, wake: Callable[[str, str], None], stop: asyncio.Event) -> None:
        """Passes each notification on as (channel, payload) until `stop` or a lost connection."""
        ended = asyncio.Event()

        def heard(_connection: Any, _process: int, channel: str, payload: object) -> None:
            wake(channel, str(payload))

        def lost(_connection: Any) -> None:
            ended.set()

        async with self._pool.acquire() as connection:
            connection.add_termination_listener(lost)
            for channel in (TASKS_CHANNEL, RUNS_CHANNEL):
                await connection.add_listener(channel, heard)
            waits = [asyncio.ensure_future(each.wait()) for each in (ended, stop)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                if not connection.is_closed():
                    connection.remove_termination_listener(lost)
                    for channel in (TASKS_CHANNEL, RUNS_CHANNEL):
                        await connection.remove_listener(channel, heard)


def _is_plotted(step: int, total_steps: int) -> bool:
    """Whether a step belongs to the plot, which has at most a thousand points."""
    return step % max(-(-total_steps // MAX_LOSSES), 1) == 0
