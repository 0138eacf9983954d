"""The timeline of a run: its events as intervals, each with whether it is charged and why.

Only the clock's events make time billable: it starts with the first optimizer step of an attempt
(A3), stops when the adapter is stored (A4), pauses while a GPU cools (A7), and the time of a lost
attempt after its last checkpoint is void (A6). Where events contradict each other, the
interpretation that charges less is used.

After a clock has stepped back, the times of events contradict their order. The order counts: a
running span begins at the latest time reported up to its first event, and ends at the earliest
time reported from its last event on. Running spans therefore follow each other without overlap,
and a void takes back all of them since a moment.

All arithmetic is in whole microseconds since 1970, the resolution of the database's clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)


class Phase(StrEnum):
    """The activity of a run: its stage, or waiting for another attempt."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    DATA_DOWNLOAD = "data download"
    INITIALIZATION = "initialization"
    TRAINING = "training"
    SAVING = "saving"
    UPLOAD = "upload"
    EXPORTING = "exporting"
    RETRYING = "retrying"
    DONE = "done"


# Phases in which no GPU node works on the run.
_IDLE: Final = frozenset({Phase.QUEUED, Phase.EXPORTING, Phase.RETRYING, Phase.DONE})


class Clock(StrEnum):
    """The effect of an event on the billable clock."""

    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    VOIDED = "voided"


class Ending(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """The end of a run, as its last event reports it."""

    ending: Ending
    refundable: bool
    fault_code: str
    fault_refundable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """The part of a run's event that the bill depends on."""

    sequence: int
    event_time: datetime
    attempt: int
    phase: Phase
    clock: Clock | None = None
    reason: str = ""
    void_from: datetime | None = None
    outcome: RunEnd | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A span of a run; `end` is None while it lasts."""

    start: datetime
    end: datetime | None
    billable: bool
    active: bool
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The intervals of a run with their sums in microseconds: billable <= active <= wall."""

    intervals: tuple[Interval, ...]
    wall_micros: int
    active_micros: int
    billable_micros: int

    @property
    def billable_minutes(self) -> int:
        """Whole billable minutes, rounded down in the user's favour (A1)."""
        return self.billable_micros // 60_000_000

    @property
    def billable_millis(self) -> int:
        """Billable time in whole milliseconds."""
        return self.billable_micros // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A half-open span of microseconds."""

    start: int
    end: int
    attempt: int = 0
    label: str = ""

    def covers(self, other: "_Span") -> bool:
        return self.start <= other.start and other.end <= self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """Bounds of the time of a clock event, derived from the order of the events.

    Attributes:
        latest: the latest time that was reported up to it; a span that it begins starts here.
        earliest: the earliest time that is reported from it on; a span that it ends stops here.
    """

    latest: int
    earliest: int


@dataclass(slots=True, kw_only=True)
class _ClockTape:
    """Replays the clock's events in order and records running, void and paused spans.

    Attributes:
        since: beginning of the open running span.
        started: beginning of the attempt under way; None before the first start.
        is_void: whether the attempt was lost, so that the next start begins another one, also
            under the same number.
    """

    running: list[_Span]
    void: list[_Span]
    paused: list[_Span]
    since: int | None = None
    started: int | None = None
    paused_since: int | None = None
    pause_reason: str = ""
    attempt: int = 0
    is_void: bool = False

    def play(self, fact: Fact, at: _Bounds) -> None:
        match fact.clock:
            case Clock.STARTED:
                self._start(at, fact.attempt)
            case Clock.PAUSED:
                if self.since is not None:
                    self.close(at)
                    self.paused_since, self.pause_reason = at.earliest, fact.reason
            case Clock.RESUMED:
                # After a stop only a new start counts, so that a stray event cannot charge.
                if self.paused_since is not None:
                    self.close(at)
                    self.since = at.latest
            case Clock.STOPPED:
                self.close(at)
            case Clock.VOIDED:
                self.close(at)
                self._cancel(self._kept(fact, at), at, attempt=self.attempt or fact.attempt)
            case None:
                self.close(at)

    def _start(self, at: _Bounds, attempt: int) -> None:
        is_same = self.started is not None and attempt == self.attempt and not self.is_void
        if is_same and self.since is not None:
            return
        if not is_same and (self.since is not None or self.paused_since is not None):
            # Another attempt started without a report that the first was lost: it is not charged
            # (A6).
            self._cancel(self.started, at, attempt=self.attempt)
        self.close(at)
        self.since = at.latest
        if not is_same:
            self.started, self.attempt, self.is_void = at.latest, attempt, False

    def close(self, at: _Bounds) -> None:
        if self.since is not None:
            end = max(self.since, at.earliest)
            self.running.append(_Span(start=self.since, end=end, attempt=self.attempt))
        if self.paused_since is not None:
            end = max(self.paused_since, at.latest)
            self.paused.append(_Span(start=self.paused_since, end=end, label=self.pause_reason))
        self.since = self.paused_since = None

    def _kept(self, fact: Fact, at: _Bounds) -> int | None:
        """Until when a lost attempt counts; None without an attempt to void."""
        kept = None if fact.void_from is None else _micros(fact.void_from)
        # A checkpoint later than the loss is a contradiction: then none of the attempt counts.
        return self.started if kept is None or kept > at.earliest else kept

    def _cancel(self, begin: int | None, at: _Bounds, *, attempt: int) -> None:
        """Takes back the spans since a moment; all of them end at `at.earliest` or before."""
        self.is_void = True
        if begin is not None and begin < at.earliest:
            self.void.append(_Span(start=begin, end=at.earliest, attempt=attempt))


def timeline(facts: Iterable[Fact], *, now: datetime | None = None) -> Timeline:
    """Returns the timeline of a run from its facts, in any order and with repetitions.

    Args:
        now: until when an unended run is measured. Default its newest fact.
    """
    ordered = sorted({fact.sequence: fact for fact in facts}.values(), key=lambda f: f.sequence)
    last = next((i for i, fact in enumerate(ordered) if fact.outcome), len(ordered) - 1)
    ordered = ordered[: last + 1]
    if not ordered:
        return Timeline(intervals=(), wall_micros=0, active_micros=0, billable_micros=0)
    tape = _ClockTape(running=[], void=[], paused=[])
    moves = [fact for fact in ordered if fact.clock is not None or fact.outcome is not None]
    for fact, at in zip(moves, _bounds(moves), strict=True):
        tape.play(fact, at)
    start = _micros(ordered[0].event_time)
    ended = ordered[-1].outcome is not None
    newest = max(_micros(fact.event_time) for fact in ordered)
    end = newest if ended or now is None else max(newest, _micros(now))
    tape.close(_Bounds(latest=end, earliest=end))
    pieces = _cut(ordered, tape, _Span(start=start, end=end))
    return Timeline(
        intervals=_merge(pieces, open_end=not ended),
        wall_micros=end - start,
        active_micros=sum(_length(piece) for piece in pieces if piece.active),
        billable_micros=sum(_length(piece) for piece in pieces if piece.billable),
    )


def outcome_of(facts: Iterable[Fact]) -> tuple[RunEnd, datetime] | None:
    """Returns how and when a run ended, or None while it has not."""
    ended = [fact for fact in facts if fact.outcome is not None]
    if not ended:
        return None
    first = min(ended, key=lambda fact: fact.sequence)
    assert first.outcome is not None
    return first.outcome, first.event_time


def _bounds(facts: Sequence[Fact]) -> list[_Bounds]:
    """Latest and earliest time of each fact, from the times of all facts."""
    reported = [_micros(fact.event_time) for fact in facts]
    earliest = [*accumulate(reversed(reported), min)][::-1]
    pairs = zip(accumulate(reported, max), earliest, strict=True)
    return [_Bounds(latest=late, earliest=early) for late, early in pairs]


def _cut(ordered: Sequence[Fact], tape: _ClockTape, life: _Span) -> list[Interval]:
    """Splits a run at every change and classifies each piece."""
    spans = [*tape.running, *tape.void, *tape.paused]
    moments = {_micros(fact.event_time) for fact in ordered}
    moments |= {edge for span in spans for edge in (span.start, span.end)} | {life.start, life.end}
    edges = sorted(moment for moment in moments if life.start <= moment <= life.end)
    pieces = []
    for begin, end in pairwise(edges):
        pieces.append(_judge(_Span(start=begin, end=end), ordered, tape))
    return pieces


def _judge(piece: _Span, ordered: Sequence[Fact], tape: _ClockTape) -> Interval:
    """Whether a piece of time is charged, whether a node worked, and why."""
    running = next((span for span in tape.running if span.covers(piece)), None)
    void = next((span for span in tape.void if span.covers(piece)), None)
    paused = next((span for span in tape.paused if span.covers(piece)), None)
    current = _current(ordered, piece.start)
    billable = running is not None and void is None
    attempt = running.attempt if running else current.attempt
    if void is not None and (running or paused):
        reason, attempt = f"lost with attempt {void.attempt}", void.attempt
    elif paused is not None:
        reason = paused.label or "paused"
    else:
        reason = str(current.phase)
    return Interval(
        start=_time(piece.start),
        end=_time(piece.end),
        billable=billable,
        active=running is not None or current.phase not in _IDLE,
        reason=reason,
        attempt=attempt,
    )


def _current(ordered: Sequence[Fact], moment: int) -> Fact:
    """The newest fact that had happened at a moment."""
    current = ordered[0]
    for fact in ordered:
        if _micros(fact.event_time) <= moment:
            current = fact
    return current


def _merge(pieces: Sequence[Interval], *, open_end: bool) -> tuple[Interval, ...]:
    """Joins adjacent intervals of one kind; the last one of an unended run has no end."""
    merged: list[Interval] = []
    for piece in pieces:
        if merged and _kind(merged[-1]) == _kind(piece):
            merged[-1] = replace(merged[-1], end=piece.end)
        else:
            merged.append(piece)
    if merged and open_end:
        merged[-1] = replace(merged[-1], end=None)
    return tuple(merged)


def _kind(interval: Interval) -> tuple[bool, bool, str, int]:
    return interval.billable, interval.active, interval.reason, interval.attempt


def _length(interval: Interval) -> int:
    assert interval.end is not None
    return (interval.end - interval.start) // _MICRO


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICRO


def _time(micros: int) -> datetime:
    return _EPOCH + micros * _MICRO
