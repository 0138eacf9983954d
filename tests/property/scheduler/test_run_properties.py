"""What holds for every run, whatever happens to it and in whatever order."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode, Stage
from scheduler.domain.effects import reading
from scheduler.domain.events import ClockChange, ClockChanged, Ended
from scheduler.domain.run import TERMINAL, RunFault, State, TaskState
from scheduler.domain.signals import (
    CheckpointReported,
    ExportCompleted,
    Heartbeat,
    LeaseLost,
    Loss,
    MetricsReported,
    PauseReported,
    Report,
    ReportBody,
    Signal,
    StageReached,
    TaskFailed,
    TaskReleased,
    TrainingBegan,
    TrainingCompleted,
)
from tests.support.runs import LEASE, TERMS, Story, some_metrics

REFUSALS = (FaultCode.RUN_TRANSITION_ILLEGAL, FaultCode.RUN_LEASE_LOST)
EXAMPLES = 200

# Makes a signal of a lease from the epoch that it shows.
FromLease = Callable[[int], Signal]
Move = Callable[[Story, int], object]

BODIES: st.SearchStrategy[ReportBody] = st.one_of(
    st.builds(StageReached, stage=st.sampled_from(Stage)),
    st.builds(TrainingBegan, from_step=st.integers(0, 50)),
    st.builds(MetricsReported, metrics=st.builds(some_metrics, st.integers(0, 100))),
    st.builds(CheckpointReported, step=st.integers(0, 100), files=st.just(b"")),
    st.builds(PauseReported, paused=st.booleans(), reason=st.just("hot")),
)
REPORTS = st.lists(
    st.builds(
        Report,
        number=st.integers(1, 60),
        age=st.timedeltas(min_value=-LEASE, max_value=10 * LEASE),
        body=BODIES,
    ),
    max_size=4,
).map(tuple)
CODES = (
    FaultCode.RUNTIME_GPU_OOM,
    FaultCode.STORAGE_FULL,
    FaultCode.INTERNAL_UNEXPECTED,
    FaultCode.DEP_MODEL_LOAD_FAILED,
)


def by_lease(make: FromLease) -> Move:
    return lambda story, epoch: story.signal(make(epoch))


def failing(code: FaultCode) -> Move:
    fault = RunFault(code=code, message="x", remedy="y", stage=Stage.TRAINING)
    return by_lease(lambda epoch: TaskFailed(fencing_epoch=epoch, fault=fault))


def losing(loss: Loss) -> Move:
    return by_lease(lambda epoch: LeaseLost(fencing_epoch=epoch, loss=loss))


def reporting(reports: tuple[Report, ...]) -> Move:
    return by_lease(lambda epoch: Heartbeat(fencing_epoch=epoch, lease=LEASE, reports=reports))


def fresh(body: ReportBody) -> Move:
    """A report with the number that comes next, so that it is not a repetition."""

    def move(story: Story, epoch: int) -> object:
        number = story.run.lease.report_number + 1 if story.run.lease else 1
        report = Report(number=number, age=timedelta(), body=body)
        return story.signal(Heartbeat(fencing_epoch=epoch, lease=LEASE, reports=(report,)))

    return move


def leased(story: Story, _epoch: int) -> object:
    return story.leased()


def trained(story: Story, epoch: int) -> object:
    signal = TrainingCompleted(
        fencing_epoch=epoch, metrics=None, samples=b"", adapter=b"", files=()
    )
    return story.signal(signal)


# What leads on comes often, what ends a run seldom, so that stories become long.
MOVES: st.SearchStrategy[Move] = st.integers(0, 99).flatmap(
    lambda dice: (
        st.just(leased)
        if dice < 30
        else st.just(fresh(TrainingBegan(from_step=0)))
        if dice < 48
        else BODIES.map(fresh)
        if dice < 60
        else REPORTS.map(reporting)
        if dice < 72
        else st.just(lambda story, _: story.ticked())
        if dice < 78
        else st.sampled_from(Loss).map(losing)
        if dice < 80
        else st.just(by_lease(lambda epoch: TaskReleased(fencing_epoch=epoch)))
        if dice < 82
        else st.sampled_from(CODES).map(failing)
        if dice < 84
        else st.just(trained)
        if dice < 92
        else st.just(
            by_lease(lambda epoch: ExportCompleted(fencing_epoch=epoch, proofs=b"", files=()))
        )
        if dice < 98
        else st.just(lambda story, _: story.stopped())
        if dice < 99
        else st.just(lambda story, _: story.cancelled())
    )
)
PLANS = st.lists(
    st.tuples(MOVES, st.sampled_from([0] * 8 + [1, 2]), st.floats(0, 200)),
    min_size=5,
    max_size=40,
)
Plan = list[tuple[Move, int, float]]


def live(story: Story, plan: Plan) -> None:
    """Makes the moves; what is refused must leave the run as it was."""
    for move, behind, seconds in plan:
        story.after(seconds=seconds)
        before, told = story.run, len(story.events)
        refused = None
        try:
            move(story, story.run.fencing_epoch - behind)
        except Fault as fault:
            refused = fault.code
        if refused is not None:
            assert refused in REFUSALS
            assert story.run == before
        if before.state in TERMINAL:
            assert replace(story.run, version=before.version) == before
            assert len(story.events) == told


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


def test_the_interleavings_reach_every_state() -> None:
    """A property that is never put to the test proves nothing."""
    seen: set[State] = set()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(plan=PLANS)
    def walk(plan: Plan) -> None:
        story = Story()
        live(story, plan)
        seen.update(event.state for event in story.events)

    walk()
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
