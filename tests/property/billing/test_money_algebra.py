"""Laws of money that hold for every history of a run, also for impossible ones."""

import random
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st

from billing.domain.ledger import EntryKind, apply, grant
from billing.domain.settlement import bill_of, hold_transfer, is_refunded, settle
from billing.domain.timeline import Clock, Ending, Fact, Phase, RunEnd, outcome_of, timeline
from tests.support.money import COMPLETED, START, a_hold

# Few whole seconds, so that times are often equal and clocks often step back, and any others.
SECONDS = st.integers(min_value=-3, max_value=12).map(float) | st.floats(
    min_value=-100, max_value=20_000, allow_nan=False
)
OUTCOMES = st.builds(
    RunEnd,
    ending=st.sampled_from(Ending),
    refundable=st.booleans(),
    fault_code=st.just("RUNTIME_GPU_OOM"),
    fault_refundable=st.booleans(),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    """Any sequence of events at any times, in order of sequence, that ends."""
    count = draw(st.integers(min_value=1, max_value=12))
    facts = [
        Fact(
            sequence=number,
            event_time=START + timedelta(seconds=draw(SECONDS)),
            attempt=draw(st.integers(min_value=0, max_value=3)),
            phase=draw(st.sampled_from(Phase)),
            clock=draw(st.none() | st.sampled_from(Clock)),
            void_from=draw(st.none() | SECONDS.map(lambda s: START + timedelta(seconds=s))),
        )
        for number in range(1, count + 1)
    ]
    end = Fact(
        sequence=count + 1,
        event_time=START + timedelta(seconds=draw(SECONDS)),
        attempt=1,
        phase=Phase.DONE,
        outcome=draw(OUTCOMES),
    )
    return [*facts, end]


HOLDS = st.builds(
    lambda rate, minutes, odd: a_hold(
        rate_micros_per_minute=rate, maximum_minutes=minutes, amount_micros=rate * minutes + odd
    ),
    rate=st.integers(min_value=0, max_value=500_000),
    minutes=st.integers(min_value=0, max_value=500),
    odd=st.integers(min_value=0, max_value=100_000),
)


@given(facts=histories())
def test_billable_is_at_most_active_is_at_most_wall(facts: list[Fact]) -> None:
    line = timeline(facts)
    assert 0 <= line.billable_micros <= line.active_micros <= line.wall_micros


@given(facts=histories())
def test_intervals_cover_the_life_of_a_run_without_gap_or_overlap(facts: list[Fact]) -> None:
    line = timeline(facts)
    total = 0.0
    for before, after in zip(line.intervals, line.intervals[1:], strict=False):
        assert before.end == after.start
    for each in line.intervals:
        assert each.end is not None
        total += (each.end - each.start) / timedelta(microseconds=1)
    assert total == line.wall_micros


@given(facts=histories(), hold=HOLDS)
def test_every_history_leaves_hold_equal_to_captured_plus_released_and_a_sum_of_zero(
    facts: list[Fact], hold: object
) -> None:
    """A1, A2: and a refund gives back exactly the charge, once, only when one is owed."""
    hold = a_hold() if not isinstance(hold, type(a_hold())) else hold
    end = outcome_of(facts)
    assert end is not None
    outcome, event_time = end
    gift = grant(
        project="acme",
        request_id="g",
        amount_micros=hold.amount_micros,
        reason="grant",
        event_time=START,
    )
    transfers = (
        hold_transfer(hold, event_time=START),
        *settle(hold, timeline(facts), outcome, event_time=event_time),
    )
    balances = apply({}, [gift, *transfers])
    bill = bill_of(transfers)
    assert sum(balances.values()) == 0
    assert balances["projects/acme/held"] == 0
    assert bill.held_micros == bill.charged_micros + bill.released_micros
    assert bill.charged_micros == bill.minutes * hold.rate_micros_per_minute
    assert bill.minutes <= timeline(facts).billable_minutes
    assert bill.refunded_micros == (bill.charged_micros if is_refunded(outcome) else 0)
    refunds = [each for each in transfers if each.kind is EntryKind.REFUND]
    assert len(refunds) == int(is_refunded(outcome))
    assert len({each.posting_key for each in transfers}) == len(transfers)


@given(facts=histories(), hold=HOLDS, seed=st.integers())
def test_replayed_reordered_and_doubled_events_give_the_same_bill(
    facts: list[Fact], hold: object, seed: int
) -> None:
    hold = a_hold() if not isinstance(hold, type(a_hold())) else hold
    shuffled = facts * 2
    random.Random(seed).shuffle(shuffled)
    end = outcome_of(facts)
    assert end == outcome_of(shuffled)
    assert end is not None
    bills = [settle(hold, timeline(each), end[0], event_time=end[1]) for each in (facts, shuffled)]
    assert bills[0] == bills[1]


def told(*moves: tuple[float, Clock | None, int]) -> list[Fact]:
    """A history from (second, move, attempt); the last one is the end."""
    story = [
        Fact(
            sequence=number,
            event_time=START + timedelta(seconds=second),
            attempt=attempt,
            phase=Phase.TRAINING,
            clock=clock,
        )
        for number, (second, clock, attempt) in enumerate(moves, start=1)
    ]
    return [*story[:-1], replace(story[-1], phase=Phase.DONE, outcome=COMPLETED)]


def inserted(facts: list[Fact], fact: Fact, *, at: int) -> list[Fact]:
    """The history with one more event at a place, numbered anew."""
    longer = [*facts[:at], fact, *facts[at:]]
    return [replace(each, sequence=number) for number, each in enumerate(longer, start=1)]


def a_void(second: float, *, attempt: int = 1, void_from: float | None = None) -> Fact:
    return Fact(
        sequence=0,
        event_time=START + timedelta(seconds=second),
        attempt=attempt,
        phase=Phase.RETRYING,
        clock=Clock.VOIDED,
        void_from=None if void_from is None else START + timedelta(seconds=void_from),
    )


BEGIN, PAUSE, RESUME, STOP = Clock.STARTED, Clock.PAUSED, Clock.RESUMED, Clock.STOPPED
# The clock steps back before the attempt's start, and behind the end of what was charged.
BEFORE_ITS_START = told((0, None, 0), (1, BEGIN, 1), (0, PAUSE, 1), (0, RESUME, 1), (0, None, 1))
BEHIND_A_PAUSE = told((0, None, 0), (0, BEGIN, 1), (100, PAUSE, 1), (100, None, 1))
# The end is told at a time before the loss.
ENDS_EARLIER = told((0, None, 0), (0, BEGIN, 1), (10, None, 1))
# A start is repeated while its attempt is in a pause.
STARTED_TWICE = told(
    (0, None, 0), (0, BEGIN, 1), (5, PAUSE, 1), (6, BEGIN, 1), (8, STOP, 1), (9, None, 1)
)
# The clock steps back between two pauses, so that training seems to go on in the first of them.
RESUMES_EARLIER = told(
    (0, None, 0), (0, BEGIN, 1), (10, PAUSE, 1), (20, RESUME, 1), (30, PAUSE, 1), (12, RESUME, 1),
    (40, STOP, 1), (50, None, 1)
)  # fmt: skip


@given(facts=histories(), second=SECONDS, void_from=st.none() | SECONDS)
@example(facts=BEFORE_ITS_START, second=1, void_from=None)
@example(facts=BEHIND_A_PAUSE, second=50, void_from=None)
@example(facts=BEHIND_A_PAUSE, second=50, void_from=60)
@example(facts=ENDS_EARLIER, second=1000, void_from=None)
@example(facts=ENDS_EARLIER, second=1000, void_from=900)
@example(facts=ENDS_EARLIER, second=1000, void_from=2000)
def test_voiding_never_makes_a_run_dearer(
    facts: list[Fact], second: float, void_from: float | None
) -> None:
    """A6: the attempt is lost at the end, with and without a checkpoint."""
    lost = inserted(facts, a_void(second, void_from=void_from), at=len(facts) - 1)
    assert timeline(lost).billable_micros <= timeline(facts).billable_micros


@given(facts=histories(), second=SECONDS, attempt=st.integers(0, 3), place=st.integers(0, 12))
@example(facts=BEFORE_ITS_START, second=1, attempt=1, place=3)
@example(facts=RESUMES_EARLIER, second=5, attempt=1, place=2)
def test_a_loss_at_any_moment_never_makes_a_run_dearer(
    facts: list[Fact], second: float, attempt: int, place: int
) -> None:
    """A6: also where more attempts follow. A run's first event stays its first."""
    place = 1 + place % (len(facts) - 1)
    lost = inserted(facts, a_void(second, attempt=attempt), at=place)
    assert timeline(lost).billable_micros <= timeline(facts).billable_micros


@given(facts=histories(), second=SECONDS, void_from=st.none() | SECONDS)
@example(facts=BEFORE_ITS_START, second=1, void_from=None)
@example(facts=BEHIND_A_PAUSE, second=50, void_from=None)
@example(facts=STARTED_TWICE, second=9, void_from=None)
@example(facts=ENDS_EARLIER, second=8, void_from=9)
def test_a_lost_attempt_costs_nothing_without_a_checkpoint_of_before_its_loss(
    facts: list[Fact], second: float, void_from: float | None
) -> None:
    """A6: whatever the only attempt went through, and whatever its clock did meanwhile."""
    is_kept = void_from is not None and void_from <= second
    once = [
        replace(each, attempt=1, clock=None if each.clock is Clock.VOIDED else each.clock)
        for each in facts
    ]
    void = a_void(second, void_from=None if is_kept else void_from)
    assert timeline(inserted(once, void, at=len(once) - 1)).billable_micros == 0


@given(facts=histories())
@example(facts=told((0, None, 0), (0, BEGIN, 1), (5, PAUSE, 1), (9, BEGIN, 2), (9, None, 2)))
@example(facts=told((0, None, 0), (5, BEGIN, 1), (2, PAUSE, 1), (3, RESUME, 1), (9, BEGIN, 2),
                    (9, None, 2)))  # fmt: skip
def test_an_attempt_that_another_one_takes_over_from_costs_nothing(facts: list[Fact]) -> None:
    """A6: an attempt that neither stopped nor was void has its time taken back."""
    *body, end = facts
    once = [replace(each, attempt=1) for each in body if each.clock not in (STOP, Clock.VOIDED)]
    over = replace(end, attempt=2, clock=BEGIN, outcome=None)
    last = replace(end, sequence=end.sequence + 1)
    assert timeline([*once, over, last]).billable_micros == 0


@given(facts=histories())
def test_a_clock_that_steps_back_never_charges(facts: list[Fact]) -> None:
    """The bill is at most that of a clock that stood still instead, before or after the step."""
    moves = [each for each in facts if each.clock is not None or each.outcome is not None]
    times = [each.event_time for each in moves]
    stood = [*accumulate(times, max)]
    stands = [*accumulate(reversed(times), min)][::-1]
    for steady in (stood, stands):
        assert timeline(moves).billable_micros <= timeline(at_times(moves, steady)).billable_micros


def at_times(facts: list[Fact], times: list[datetime]) -> list[Fact]:
    pairs = zip(facts, times, strict=True)
    return [replace(fact, event_time=time) for fact, time in pairs]


@given(facts=histories())
@example(facts=RESUMES_EARLIER)
def test_what_is_charged_is_neither_called_a_pause_nor_lost(facts: list[Fact]) -> None:
    """The receipt of a run names for each interval why it is or is not charged."""
    named = [replace(each, reason="cooling") for each in facts]
    for interval in timeline(named).intervals:
        if interval.billable:
            assert interval.reason in set(Phase)
