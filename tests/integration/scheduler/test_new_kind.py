"""What a new kind of task costs: one module, this one, and one row in the table of kinds.

A toy is weighed by an exporter. Nothing of the machine is written again: the toy is leased, lost,
retried and completed by the calls, the rules and the rows that runs and exports have.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, cast

import pytest

from chassis import postgres
from chassis.identity import Role
from chassis.sealing import Sealer
from lexicon.faults import Fault, FaultCode, Stage
from scheduler import rows
from scheduler.alerts import Alerts
from scheduler.background import Reaper
from scheduler.domain import failures, tasks
from scheduler.domain.node import NodeRecord
from scheduler.domain.signals import Heartbeat, LeaseLost, TaskFailed
from scheduler.domain.tasks import Ending, Lease, Task, TaskKind, TaskLeased
from scheduler.kinds import About, Kind, Kinds, LeaseSignal, Lock
from scheduler.peers import Peers
from scheduler.store import Store, Transaction
from scheduler.wakeups import Wakeups
from scheduler.work import WorkService
from tests.support.desk import SIGNING_KEY, serving
from tests.support.scheduler_calls import an_output, complete, fail, heartbeat, leased, registered
from tests.support.scheduling import Stubs, calling
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

pytestmark = pytest.mark.integration

KIND: Final = "WEIGH_TOY"
TOY: Final = "projects/acme/toys/toy-1"
NODE: Final = "nodes/scales"
PLAN: Final = "object://toys/plan"
EXPORTS: Final = work_pb2.TASK_KIND_EXPORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """What owns the task; it is weighed once all is stored."""

    name: str
    task: Task
    weight: int = 0


class Toys:
    """Toys as owners: one table, locked like that of runs."""

    async def load(
        self, transaction: Transaction, name: str, lock: Lock
    ) -> tuple[Toy, datetime] | None:
        query = {
            Lock.NONE: "SELECT weight FROM toys WHERE name = $1",
            Lock.WAIT: "SELECT weight FROM toys WHERE name = $1 FOR UPDATE",
            Lock.IF_FREE: "SELECT weight FROM toys WHERE name = $1 FOR UPDATE SKIP LOCKED",
        }[lock]
        connection = transaction._connection
        if (weight := await connection.fetchval(query, name)) is None:
            return None
        row = await connection.fetchrow(
            "SELECT t AS task_row, l AS lease_row FROM tasks t "
            "LEFT JOIN leases l ON l.lease_id = t.lease_id WHERE t.owner = $1",
            name,
        )
        assert row is not None
        toy = Toy(name=name, task=rows.task_of(row), weight=weight)
        return toy, await transaction.now()

    async def commit(
        self, transaction: Transaction, owner: Toy, signal: LeaseSignal, now: datetime
    ) -> Toy:
        task = owner.task
        match signal:
            case TaskLeased():
                task = tasks.lease(task, signal, now)
            case Heartbeat():
                tasks.held(task, fencing_epoch=signal.fencing_epoch)
                task = tasks.heard(task, until=now + signal.lease)
            case TaskFailed():
                transient = failures.is_transient(signal.fault)
                ending = tasks.ending_of_failure(task, transient=transient)
                task = tasks.close(task, ending, now, fault=signal.fault)
            case LeaseLost():
                task = tasks.close(task, tasks.ending_of_loss(task), now)
            case _:
                task = tasks.close(task, Ending.RELEASED, now)
        await transaction.tasks.put(owner.name, task, tier=rows.EXPORT_TIER)
        return replace(owner, task=task)

    async def same_oom_count(self, transaction: Transaction, owner: Toy) -> int:
        return 0

    def about(self, owner: Toy) -> About:
        folder = f"object://toys/{owner.name.rpartition('/')[2]}/"
        return About(run=owner.name, folder=folder, stage=Stage.EXPORTING, traceparent="")

    def farewell(self, owner: Toy, lease: Lease) -> str:
        return "The toy needs nobody."


async def candidates(transaction: Transaction, node: NodeRecord) -> Sequence[str]:
    return await transaction.tasks.queued(KIND, tier=node.tier)


async def inputs(_transaction: Transaction, _owner: Toy) -> list[str]:
    return [PLAN]


async def payload(
    _transaction: Transaction, _owner: Toy, urls: Mapping[str, str], _hub_token: str
) -> work_pb2.Lease:
    plan = work_pb2.InputFile(path="plan", url=urls[PLAN])
    return work_pb2.Lease(export=work_pb2.ExportTask(adapter=[plan]))


async def complete_toy(
    transaction: Transaction, owner: Toy, request: work_service_pb2.CompleteTaskRequest
) -> None:
    """Registers the weight."""
    task = tasks.close(owner.task, Ending.COMPLETED, await transaction.now())
    await transaction.tasks.put(owner.name, task, tier=rows.EXPORT_TIER)
    query = "UPDATE toys SET weight = $2 WHERE name = $1"
    await transaction._connection.execute(query, owner.name, request.outputs[0].size_bytes)


# The row in the table of kinds.
KINDS: Final[Kinds] = {
    KIND: Kind(
        worker=TaskKind.EXPORT,
        owners=Toys(),
        candidates=candidates,
        inputs=inputs,
        payload=payload,
        complete=complete_toy,
    )
}


class FakeHub:
    """Signs."""

    async def sign_reads(self, uris: Sequence[str]) -> dict[str, str]:
        return {uri: f"https://{uri}" for uri in uris}

    async def sign_writes(self, sizes_bytes: Mapping[str, int]) -> dict[str, str]:
        return {uri: f"https://{uri}" for uri in sizes_bytes}


@dataclass(slots=True, kw_only=True)
class Shop:
    """A scheduler that knows the toy kind alone, its database, and a node."""

    pool: postgres.Pool
    store: Store
    node: Stubs

    async def toy(self) -> Toy:
        async with self.store.transaction() as transaction:
            found = await Toys().load(transaction, TOY, Lock.NONE)
        assert found is not None
        return found[0]

    async def rested(self) -> None:
        """The rest before another attempt is over."""
        await self.pool.execute("UPDATE tasks SET not_before = clock_timestamp()")


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with _shop(database_url) as found:
        yield found


@asynccontextmanager
async def _shop(database_url: str) -> AsyncIterator[Shop]:
    pool = await postgres.open_pool(database_url, schema="scheduler")
    await postgres.migrate(pool, schema="scheduler", package="scheduler")
    await pool.execute("CREATE TABLE toys (name text PRIMARY KEY, weight int NOT NULL)")
    await pool.execute("INSERT INTO toys VALUES ($1, 0)", TOY)
    store = Store(pool)
    async with store.transaction() as transaction:
        task = tasks.queued(KIND, await transaction.now())
        await transaction.tasks.put(TOY, task, tier=rows.EXPORT_TIER)
    work = WorkService(
        store,
        cast(Peers, FakeHub()),
        Wakeups(),
        Sealer(SIGNING_KEY, purpose="hub-tokens"),
        Alerts(store, nats_url="nats://127.0.0.1:1", webhook_url=None),
        KINDS,
        lease=timedelta(seconds=60),
        heartbeat_millis=1000,
    )

    def register(server: Any) -> list[str]:
        work_service_pb2_grpc.add_WorkServiceServicer_to_server(work, server)
        return ["tunesmith.api.work.v1.WorkService"]

    async with (
        serving(register) as address,
        calling(address, Role.NODE, subject=NODE) as node,
    ):
        await registered(node, NODE, EXPORTS)
        yield Shop(pool=pool, store=store, node=node)
    await pool.close()


async def test_a_new_kind_lives_through_loss_retry_and_completion(shop: Shop) -> None:
    first = await leased(shop.node, NODE)
    assert (first.attempt, first.fencing_epoch, first.run) == (1, 1, TOY)
    assert [file.path for file in first.export.adapter] == ["plan"]
    assert (await leased(shop.node, NODE)).lease_id == first.lease_id

    # Its node is silent for too long: another attempt, at once, and the first is fenced off.
    await shop.pool.execute("UPDATE leases SET expire_time = lease_time")
    assert await Reaper(shop.store, KINDS, lease=timedelta()).run_once() == 1
    for refused in (heartbeat(shop.node, first), complete(shop.node, first)):
        with pytest.raises(Fault) as caught:
            await refused
        assert caught.value.code is FaultCode.RUN_LEASE_LOST
    second = await leased(shop.node, NODE)
    assert (second.attempt, second.fencing_epoch) == (2, 2)

    # It fails for a moment: it rests, then the last attempt.
    await fail(shop.node, second, fault_pb2.Fault(code="INTERNAL_UNEXPECTED", message="Oh."))
    resting = (await shop.toy()).task
    assert (resting.state, resting.failures) == ("QUEUED", 2)
    assert resting.not_before > resting.queue_time + timedelta(seconds=2)
    assert not (await leased(shop.node, NODE, wait_millis=0)).lease_id
    await shop.rested()
    third = await leased(shop.node, NODE)
    assert (third.attempt, third.fencing_epoch) == (3, 3)

    output = await an_output(shop.node, third, "weight")
    assert output.uri.startswith("object://toys/toy-1/3/")
    await complete(shop.node, third, output)
    await complete(shop.node, third, output)
    toy = await shop.toy()
    assert (toy.task.state, toy.weight) == ("DONE", 3)
    beat = await heartbeat(shop.node, third)
    assert beat.directive == work_service_pb2.DIRECTIVE_CONTINUE


async def test_a_new_kind_has_three_attempts_and_a_return_is_none(shop: Shop) -> None:
    for attempt in (1, 2, 3):
        lease = await leased(shop.node, NODE)
        await shop.node.work.ReleaseTask(
            work_service_pb2.ReleaseTaskRequest(
                lease_id=lease.lease_id, fencing_epoch=lease.fencing_epoch
            )
        )
        lease = await leased(shop.node, NODE)
        assert lease.attempt == attempt
        await fail(shop.node, lease, fault_pb2.Fault(code="INTERNAL_UNEXPECTED", message="Oh."))
        await shop.rested()
    toy = await shop.toy()
    assert (toy.task.state, toy.task.failures, toy.task.fencing_epoch) == ("FAILED", 2, 6)
    assert not (await leased(shop.node, NODE, wait_millis=0)).lease_id
