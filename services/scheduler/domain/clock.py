"""The four clocks of a run: wall, active, billable, wasted; billable <= active <= wall.

The clock is a value that moves only by its methods, one a `ClockChanged` event, so that whoever
folds the events reads the same time. Time of an attempt stays voidable until the attempt is over:
what a lost attempt did after its last checkpoint does not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

ZERO: Final = timedelta()
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A closed span of billable time, start <= end."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The four clocks at one moment."""

    wall: timedelta
    active: timedelta
    billable: timedelta

    @property
    def wasted(self) -> timedelta:
        """Active time that is not charged."""
        return self.active - self.billable


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Billable and active time of a run.

    Attributes:
        settled: billable time of earlier attempts; nothing voids it any more.
        spans: closed billable spans of the attempt under way.
        started_time: when the attempt's first step began; None while it has not.
        running_since: beginning of the open billable span.
        paused: whether it went from running into a pause.
        changed_time: time of the newest change; later changes are not before it.
        active_settled: active time of closed leases.
        active_since: beginning of the open lease.
    """

    settled: timedelta = ZERO
    spans: tuple[Span, ...] = ()
    started_time: datetime | None = None
    running_since: datetime | None = None
    paused: bool = False
    changed_time: datetime | None = None
    active_settled: timedelta = ZERO
    active_since: datetime | None = None

    def open(self, at: datetime) -> "Clock":
        """A node took the run; earlier attempts are settled for good."""
        assert self.active_since is None
        assert self.running_since is None
        return Clock(
            settled=self.settled + _total(self.spans),
            changed_time=self.changed_time,
            active_settled=self.active_settled,
            active_since=at,
        )

    def close(self, at: datetime) -> "Clock":
        """The node is free again."""
        assert self.active_since is not None
        assert self.running_since is None
        worked = max(at - self.active_since, ZERO)
        return replace(self, active_settled=self.active_settled + worked, active_since=None)

    def start(self, at: datetime) -> "Clock":
        """The first optimizer step of an attempt began."""
        assert self.started_time is None
        assert self.active_since is not None
        return replace(self, started_time=at, running_since=at, paused=False, changed_time=at)

    def pause(self, at: datetime) -> "Clock":
        """Training pauses; the pause is free."""
        return replace(self._closed(at), paused=True)

    def resume(self, at: datetime) -> "Clock":
        """Training goes on after a pause."""
        assert self.paused
        return replace(self, running_since=at, paused=False, changed_time=at)

    def stop(self, at: datetime) -> "Clock":
        """Nothing is charged from here on, unless another attempt starts."""
        return replace(self._closed(at), paused=False)

    def void(self, at: datetime, *, keep_until: datetime | None) -> "Clock":
        """The attempt was lost: time after `keep_until` does not count; None keeps nothing."""
        closed = self._closed(at)
        kept = () if keep_until is None else tuple(_clipped(closed.spans, keep_until))
        return replace(closed, spans=kept, paused=False)

    def forget(self, at: datetime) -> "Clock":
        """Everything so far is done again from the beginning, so none of it counts."""
        assert self.running_since is None
        return replace(self, settled=ZERO, spans=(), changed_time=at)

    @property
    def ticks(self) -> bool:
        """Whether it runs or is in a pause, so that a stop or a void changes it."""
        return self.running_since is not None or self.paused

    def billable(self, now: datetime) -> timedelta:
        """What is charged, before rounding down."""
        open_span = ZERO if self.running_since is None else max(now - self.running_since, ZERO)
        return self.settled + _total(self.spans) + open_span

    def active(self, now: datetime) -> timedelta:
        """How long nodes worked on the run."""
        open_lease = ZERO if self.active_since is None else max(now - self.active_since, ZERO)
        return self.active_settled + open_lease

    def reaches(self, billable: timedelta) -> datetime | None:
        """When the running clock reaches so much billable time; None while it does not run."""
        if self.running_since is None:
            return None
        missing = billable - self.settled - _total(self.spans)
        return self.running_since + max(missing, ZERO)

    def _closed(self, at: datetime) -> "Clock":
        if self.running_since is None:
            return replace(self, changed_time=at)
        span = Span(start=self.running_since, end=max(at, self.running_since))
        return replace(self, spans=(*self.spans, span), running_since=None, changed_time=span.end)


def read(
    clock: Clock, *, submit_time: datetime, end_time: datetime | None, now: datetime
) -> Reading:
    """The four clocks now, or at the end of a run that has ended."""
    moment = now if end_time is None else end_time
    wall = max(moment - submit_time, ZERO)
    active = min(clock.active(moment), wall)
    return Reading(wall=wall, active=active, billable=min(clock.billable(moment), active))


def whole_minutes(billable: timedelta) -> int:
    """Minutes that are charged: rounded down, in the user's favour."""
    return billable // _MINUTE


def cost_micros(billable: timedelta, *, rate_micros_per_minute: int, hold_micros: int) -> int:
    """Cost so far in millionths of a credit: whole minutes times the rate, at most the hold."""
    return min(whole_minutes(billable) * rate_micros_per_minute, hold_micros)


def _total(spans: Iterable[Span]) -> timedelta:
    return sum((span.end - span.start for span in spans), ZERO)


def _clipped(spans: Iterable[Span], end: datetime) -> Iterable[Span]:
    for span in spans:
        if span.start < end:
            yield replace(span, end=min(span.end, end))
