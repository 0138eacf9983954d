"""A worker as the scheduler knows it."""

from dataclasses import dataclass
from datetime import datetime

from scheduler.domain.run import Document
from scheduler.domain.tasks import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node; `description` is what it reported of itself when it registered.

    Attributes:
        incarnation: names the process; a restarted agent has another one.
        run: run or export that it works on; empty while it has no lease.
    """

    name: str
    incarnation: str
    kind: TaskKind
    tier: str
    description: Document
    register_time: datetime
    heartbeat_time: datetime
    temperature_celsius: float | None = None
    run: str = ""
