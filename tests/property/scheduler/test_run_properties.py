"""What holds for every run, whatever happens to it and in whatever order."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from scheduler.domain.effects import reading
from scheduler.domain.events import ClockChange, ClockChanged, Ended
from scheduler.domain.run import TERMINAL, State
from scheduler.domain.signals import Loss
from scheduler.domain.tasks import TaskState
from tests.support.run_plans import (
    EXAMPLES,
    PLANS,
    STEPS,
    Plan,
    failing,
    live,
    losing,
    reporting,
    trained,
)
from tests.support.runs import TERMS, Story


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS, gguf=st.booleans())
def test_any_interleaving_keeps_every_invariant(plan: Plan, gguf: bool) -> None:
    """Terminal is final; sequences have no gap; billable <= active <= wall; one end at most."""
    story = Story(terms=replace(TERMS, gguf=gguf))
    live(story, plan)
    assert [event.sequence for event in story.events] == list(range(1, len(story.events) + 1))
    ends = [event for event in story.events if isinstance(event.body, Ended)]
    assert len(ends) == (story.run.state in TERMINAL)
    assert not ends or story.events[-1] is ends[0]
    clocks = reading(story.run, story.now)
    assert story.run.clock.billable(story.now) <= story.run.clock.active(story.now)
    assert clocks.billable <= clocks.active <= clocks.wall
    assert story.run.task.failures <= 2
    assert (story.run.lease is not None) == (story.run.task.state is TaskState.LEASED)


def test_the_steps_reach_every_state() -> None:
    """A property that is never put to the test proves nothing."""
    dice = Random(7)
    seen: set[State] = set()
    for _ in range(100):
        story = Story()
        live(story, [(dice.choice(STEPS), 0, 5.0) for _ in range(30)])
        seen.update(event.state for event in story.events)
    assert seen == set(State)


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS)
def test_an_old_epoch_never_changes_anything(plan: Plan) -> None:
    story = Story()
    live(story, plan)
    old = story.run.fencing_epoch - 1
    before = story.run
    for move in (trained, losing(Loss.EXPIRED), failing(FaultCode.STORAGE_FULL), reporting(())):
        refused = None
        try:
            move(story, old)
        except Fault as fault:
            refused = fault.code
        assert refused is FaultCode.RUN_LEASE_LOST
        assert story.run == before


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=PLANS)
def test_whoever_folds_the_clock_events_reads_the_same_time(plan: Plan) -> None:
    """The bill is a function of the events: a plain fold of them gives the run's own clock."""
    story = Story()
    live(story, plan)
    counted: list[tuple[datetime, datetime]] = []
    since: datetime | None = None
    begun: datetime | None = None
    for event in story.events:
        body = event.body
        if not isinstance(body, ClockChanged):
            continue
        if since is not None:
            counted.append((since, event.time))
            since = None
        match body.change:
            case ClockChange.STARTED:
                since = begun = event.time
            case ClockChange.RESUMED:
                since = event.time
            case ClockChange.VOIDED:
                edge = body.void_from or begun
                assert edge is not None
                counted = [(start, min(end, edge)) for start, end in counted if start < edge]
    if since is not None:
        counted.append((since, max(since, story.now)))
    total = sum((end - start for start, end in counted), timedelta())
    assert story.run.clock.billable(story.now) == total
