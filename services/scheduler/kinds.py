"""What a kind of task says of itself, so that one machine serves all of them (ADR 15).

`work.py` leases, hears, fails and releases a task without knowing its kind. A kind adds what is its
own: which nodes do it, what it reads, and what its completion registers. Owners add how a run or
an export is read, locked and changed. The table of kinds is made in `__main__`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from lexicon.faults import Fault, Stage
from scheduler.domain.node import NodeRecord
from scheduler.domain.signals import Heartbeat, LeaseLost, TaskFailed, TaskReleased
from scheduler.domain.tasks import Lease, Task, TaskKind, TaskLeased
from scheduler.store import Transaction
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

# What the machine reports to an owner; a completion is reported by its kind.
LeaseSignal: TypeAlias = TaskLeased | Heartbeat | TaskFailed | LeaseLost | TaskReleased


class Lock(Enum):
    """How an owner is read."""

    NONE = "read only"
    WAIT = "wait until it is free"
    IF_FREE = "not at all when it is in other hands"


class Owner(Protocol):
    """A run, an export, or what else owns a task."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the machine shows of an owner.

    Attributes:
        run: run that workers and operators get to know.
        folder: URI under which outputs lie, each lease in a folder of its epoch.
        stage: stage of a fault that its node reports now.
        finish: why the node must end now and keep the work; empty while it goes on.
    """

    run: str
    folder: str
    stage: Stage
    traceparent: str
    fingerprint: str = ""
    finish: str = ""

    def prefix(self, fencing_epoch: int) -> str:
        """URI under which a lease may write: a lost attempt is apart from its successor."""
        return f"{self.folder}{fencing_epoch}/"


_Owner = TypeVar("_Owner", bound=Owner)


class Owners(Protocol[_Owner]):
    """How owners are read, locked and changed."""

    async def load(
        self, transaction: Transaction, name: str, lock: Lock
    ) -> tuple[_Owner, datetime] | None:
        """An owner and the time; None when it is not free.

        Raises:
            Fault: the owner's own code when it does not exist.
        """

    async def commit(
        self, transaction: Transaction, owner: _Owner, signal: LeaseSignal, now: datetime
    ) -> _Owner:
        """The owner after a signal, written with its events.

        Raises:
            Fault: RUN_LEASE_LOST, RUN_TRANSITION_ILLEGAL.
        """

    async def same_oom_count(self, transaction: Transaction, owner: _Owner) -> int:
        """Earlier owners of the same configuration that ran out of memory."""

    def about(self, owner: _Owner) -> About:
        """What the machine shows of it."""

    def farewell(self, owner: _Owner, lease: Lease) -> str:
        """Why a node must stop whose lease has ended."""


async def _nothing(_owner: object) -> None:
    """Nobody need be asked."""


async def _always(_transaction: Transaction, _owner: object) -> bool:
    return True


async def _never(_transaction: Transaction, _owner: object, _fault: Fault, _now: datetime) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[_Owner]):
    """One kind of task.

    Attributes:
        worker: nodes that do it.
        owners: how its owners are read, locked and changed.
        candidates: owners of the tasks that a node may have now, in order.
        inputs: URIs that the task reads.
        payload: what a worker needs, with these URLs and this token for the model hub, in the
            field of the lease that is the kind's own.
        complete: registers the outputs and commits the end, while the owner stays locked;
            INPUT_FIELD_INVALID for outputs that are not the kind's.
        check: asks others before a lease, without any lock; a fault keeps it from being offered.
        give_up: ends the owner for a fault of `check` that will not pass; False when it may.
        admits: whether the task may still be leased, once its owner is locked.
    """

    worker: TaskKind
    owners: Owners[_Owner]
    candidates: Callable[[Transaction, NodeRecord], Awaitable[Sequence[str]]]
    inputs: Callable[[Transaction, _Owner], Awaitable[list[str]]]
    payload: Callable[[Transaction, _Owner, Mapping[str, str], str], Awaitable[work_pb2.Lease]]
    complete: Callable[
        [Transaction, _Owner, work_service_pb2.CompleteTaskRequest], Awaitable[object]
    ]
    check: Callable[[_Owner], Awaitable[object]] = _nothing
    give_up: Callable[[Transaction, _Owner, Fault, datetime], Awaitable[bool]] = _never
    admits: Callable[[Transaction, _Owner], Awaitable[bool]] = _always


# Kinds by name, in the order in which a node is offered work.
Kinds: TypeAlias = Mapping[str, Kind[Any]]
