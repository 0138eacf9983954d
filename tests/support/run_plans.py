"""Stories of runs for property tests: what may happen, in any order, also late and wrong."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode, Stage
from scheduler.domain.run import TERMINAL
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
from scheduler.domain.tasks import RunFault
from tests.support.runs import LEASE, Story, some_metrics

REFUSALS = (FaultCode.RUN_TRANSITION_ILLEGAL, FaultCode.RUN_LEASE_LOST)
EXAMPLES = 120

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
    FaultCode.RUNTIME_LOSS_NOT_FINITE,
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


begin: Move = fresh(TrainingBegan(from_step=0))
exported: Move = by_lease(lambda epoch: ExportCompleted(fencing_epoch=epoch, proofs=b"", files=()))


def ticking(story: Story, _epoch: int) -> object:
    return story.ticked()


def stopping(story: Story, _epoch: int) -> object:
    return story.stopped()


def cancelling(story: Story, _epoch: int) -> object:
    return story.cancelled()


# What leads on comes often, what ends a run seldom, so that stories become long.
STEPS: list[Move] = [
    *[leased] * 12,
    *[begin] * 8,
    *[trained, exported] * 2,
    *[ticking] * 3,
    *[losing(loss) for loss in Loss],
    *[failing(code) for code in CODES],
    by_lease(lambda epoch: TaskReleased(fencing_epoch=epoch)),
    stopping,
    cancelling,
]
MOVES: st.SearchStrategy[Move] = st.one_of(
    st.sampled_from(STEPS),
    st.sampled_from(STEPS),
    BODIES.map(fresh),
    REPORTS.map(reporting),
)
# Stories begin at different places, so that the late ones are not left out.
OPENINGS: list[list[Move]] = [
    [],
    [leased, begin],
    [leased, begin, trained, leased],
    [leased, begin, losing(Loss.EXPIRED), leased, begin, losing(Loss.RESTARTED), leased],
]
PLANS = st.builds(
    lambda opening, rest: [(move, 0, 7.0) for move in opening] + rest,
    st.sampled_from(OPENINGS),
    st.lists(st.tuples(MOVES, st.sampled_from([0] * 8 + [1, 2]), st.floats(0, 200)), max_size=30),
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
