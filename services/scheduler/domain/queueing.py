"""The queue: higher priority first, then first come first served, within what a plan allows."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from scheduler.domain.tasks import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task that waits for a node.

    Attributes:
        priority: -100 to 100, higher first.
        running_count: training leases of its project now.
        concurrency_limit: how many its plan allows.
    """

    run: str
    kind: str
    priority: int
    queue_time: datetime
    running_count: int
    concurrency_limit: int


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The tasks that may start now, in the order in which they are offered."""
    startable = [candidate for candidate in candidates if may_start(candidate)]
    return sorted(startable, key=lambda each: (-each.priority, each.queue_time, each.run))


def may_start(candidate: Candidate) -> bool:
    """Whether the plan allows one more; exports are free and not counted."""
    if candidate.kind == TaskKind.EXPORT:
        return True
    return candidate.running_count < candidate.concurrency_limit
