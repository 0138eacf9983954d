"""The scheduler's clock and billing's timeline are two programs that read one log of events."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.domain.timeline import timeline
from billing.wire import fact_from_event
from scheduler.domain.clock import whole_minutes
from scheduler.domain.effects import reading
from scheduler.domain.events import ClockChanged
from scheduler.wire import event_to_proto
from tests.support.run_plans import EXAMPLES, PLANS, Plan, live
from tests.support.runs import NAME, Story


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS)
def test_billing_reads_the_minutes_that_the_scheduler_shows(plan: Plan) -> None:
    """A6: whatever happens to a run, its bill and its live clock are the same time."""
    story = Story()
    live(story, plan)
    assert_bill_is_what_is_shown(story)


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS, back=st.floats(0, 200))
def test_billing_reads_the_same_minutes_when_the_database_clock_steps_back(
    plan: Plan, back: float
) -> None:
    """Times of the clock's changes keep the order of their events, and what is shown is charged."""
    story = Story()
    live(story, [(move, behind, seconds - back) for move, behind, seconds in plan])
    times = [event.time for event in story.events if isinstance(event.body, ClockChanged)]
    assert times == sorted(times)
    story.now = max(story.now, story.run.update_time)
    assert_bill_is_what_is_shown(story)


def assert_bill_is_what_is_shown(story: Story) -> None:
    facts = [fact_from_event(event_to_proto(NAME, event, traceparent="")) for event in story.events]
    billed = timeline([fact for fact in facts if fact is not None], now=story.now)
    shown = reading(story.run, story.now)
    assert billed.billable_micros == shown.billable // timedelta(microseconds=1)
    assert billed.billable_minutes == whole_minutes(shown.billable)
