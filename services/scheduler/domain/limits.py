"""Limits of money and time: a run is ended before it costs more, and its work is kept.

At a limit the node is asked to finish: it ends at the next step and saves. What the saving takes
beyond the budget is free, because the clock is stopped at the moment at which the budget is
spent.
"""

from datetime import datetime, timedelta
from typing import Final

from scheduler.domain.clock import cost_micros
from scheduler.domain.run import FinishCause, Run
from scheduler.domain.tasks import TaskKind
from scheduler.domain.transitions import Trigger

_MINUTE: Final = timedelta(minutes=1)

# The node is asked so long before another whole minute would be charged, to have time to save.
FINISH_MARGIN: Final = timedelta(seconds=30)

# The clock stops so long before another whole minute would be charged.
CLOCK_MARGIN: Final = timedelta(seconds=1)

# A node that was asked to finish at the timeout and goes on is given up after this.
FINISH_GRACE: Final = timedelta(minutes=10)

# Time and credits are reported again after this while training: within every five seconds (001-16),
# with room for the tick that finds it due.
PROGRESS_INTERVAL: Final = timedelta(seconds=4)

# In the first minute of an attempt people look closely, and short runs are over after it.
YOUNG_AGE: Final = timedelta(minutes=1)
YOUNG_PROGRESS_INTERVAL: Final = timedelta(seconds=1)


def billable_limit(run: Run) -> timedelta | None:
    """Billable time at which one more minute would go over the budget; None when time is free."""
    rate = run.terms.rate_micros_per_minute
    if rate == 0:
        return None
    return (run.terms.budget_micros // rate + 1) * _MINUTE


def reached(run: Run, now: datetime) -> FinishCause | None:
    """The limit that the training has reached, None while there is none."""
    limit = billable_limit(run)
    if limit is not None and run.clock.billable(now) >= limit - FINISH_MARGIN:
        return FinishCause.BUDGET
    timeout, begun = run.terms.timeout, run.clock.started_time
    if timeout is not None and begun is not None and now - begun >= timeout:
        return FinishCause.TIMEOUT
    return None


def clock_end(run: Run, now: datetime) -> datetime | None:
    """When the budget was spent, None while it is not."""
    limit = billable_limit(run)
    if limit is None:
        return None
    moment = run.clock.reaches(limit - CLOCK_MARGIN)
    return moment if moment is not None and moment <= now else None


def due(run: Run, now: datetime) -> list[Trigger]:
    """What the time that went by makes happen to a run."""
    if run.lease is None or run.lease.kind != TaskKind.TRAIN:
        return []
    if _is_overrun(run, now):
        return [Trigger.TIMEOUT_OVERRUN]
    triggers = []
    if run.finish is None and reached(run, now):
        triggers.append(Trigger.LIMIT_REACHED)
    if clock_end(run, now) is not None:
        triggers.append(Trigger.BUDGET_SPENT)
    if is_progress_due(run, now):
        triggers.append(Trigger.PROGRESS_DUE)
    return triggers


def is_progress_due(run: Run, now: datetime) -> bool:
    """Whether progress should be reported again."""
    if run.progress_time is None:
        return True
    begun = run.clock.started_time
    is_young = begun is not None and now - begun < YOUNG_AGE
    interval = YOUNG_PROGRESS_INTERVAL if is_young else PROGRESS_INTERVAL
    return now - run.progress_time >= interval


def cost_now(run: Run, now: datetime) -> int:
    """Cost so far in millionths of a credit, never more than is held."""
    return cost_micros(
        run.clock.billable(now if run.end_time is None else run.end_time),
        rate_micros_per_minute=run.terms.rate_micros_per_minute,
        hold_micros=run.terms.hold_micros,
    )


def _is_overrun(run: Run, now: datetime) -> bool:
    if run.finish is None or run.finish.cause is not FinishCause.TIMEOUT:
        return False
    return now - run.finish.time >= FINISH_GRACE
