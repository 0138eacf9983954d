"""The scheduler's clock and billing's timeline are two programs that read one log of events."""

from datetime import timedelta

from hypothesis import given, settings

from billing.domain.timeline import timeline
from billing.wire import fact_from_event
from scheduler.domain.clock import whole_minutes
from scheduler.domain.effects import reading
from scheduler.wire import event_to_proto
from tests.support.run_plans import EXAMPLES, PLANS, Plan, live
from tests.support.runs import NAME, Story


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS)
def test_billing_reads_the_minutes_that_the_scheduler_shows(plan: Plan) -> None:
    """A6: whatever happens to a run, its bill and its live clock are the same time."""
    story = Story()
    live(story, plan)
    facts = [fact_from_event(event_to_proto(NAME, event, traceparent="")) for event in story.events]
    billed = timeline([fact for fact in facts if fact is not None], now=story.now)
    shown = reading(story.run, story.now)
    assert billed.billable_micros == shown.billable // timedelta(microseconds=1)
    assert billed.billable_minutes == whole_minutes(shown.billable)
