"""Laws of money that hold for every history of a run, also for impossible ones."""

import random
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from billing.domain.ledger import EntryKind, apply, grant
from billing.domain.settlement import bill_of, hold_transfer, is_refunded, settle
from billing.domain.timeline import Clock, Ending, Fact, Outcome, Phase, outcome_of, timeline
from tests.support.money import START, a_hold

SECONDS = st.floats(min_value=-100, max_value=20_000, allow_nan=False)
OUTCOMES = st.builds(
    Outcome,
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


@given(facts=histories(), extra=SECONDS)
def test_voiding_never_makes_a_run_dearer(facts: list[Fact], extra: float) -> None:
    """A6."""
    *body, end = facts
    void = Fact(
        sequence=end.sequence,
        event_time=START + timedelta(seconds=extra),
        attempt=1,
        phase=Phase.RETRYING,
        clock=Clock.VOIDED,
    )
    later = Fact(
        sequence=end.sequence + 1,
        event_time=end.event_time,
        attempt=1,
        phase=Phase.DONE,
        outcome=end.outcome,
    )
    assert timeline([*body, void, later]).billable_micros <= timeline(facts).billable_micros
