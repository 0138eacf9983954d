"""`kill -9` of each process in mid-run: the run completes, nothing is lost or doubled."""

import time
from collections.abc import Iterator

import pytest

from tests.demo import lesson
from tests.demo.stack import Stack
from tests.support import subscriber
from tests.support.whole_stack import BASE, kill, settled, wait_until_back
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
STEPS = 120
# The middle of the training.
KILL_AT_STEP = 40
# Often enough that a checkpoint is stored long before the end, also where steps are fast.
CHECKPOINT_EVERY_STEPS = 20
RELAY_SECONDS = 60
MILLIS_PER_MINUTE = 60_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(state=tmp_path_factory.mktemp("chaos"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.credentials) as made:
        made.datasets.push(lesson.read_lesson().dataset, dataset_id=lesson.DATASET_ID)
        yield made


@pytest.mark.parametrize(
    "name",
    [
        "gateway",
        "scheduler",
        "validator",
        "billing",
        "hub",
        "trainer",
        "exporter",
        "nats-server",
        "postgres",
    ],
)
def test_a_run_survives_the_death_of(name: str, stack: Stack, client: Client) -> None:
    """000-28, 003-13"""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.training.max_steps = STEPS
    spec.training.checkpoint_every_steps = CHECKPOINT_EVERY_STEPS
    before = client.billing.account()
    run = client.runs.submit(spec)
    told, killed = [], 0
    for event in client.runs.watch(run.name):
        told.append(event)
        if not killed and _is_the_moment(event, name):
            killed = kill(stack, name)
    assert killed, f"the run ended before {name} was killed"
    wait_until_back(stack, name, killed=killed)
    _assert_completed(client.runs.get(run.name), name)
    _assert_told_once(client, run.name, told)
    _assert_charged_once(client, run, before)


def _is_the_moment(event: event_pb2.Event, name: str) -> bool:
    if name == "exporter":
        return event.stage == fault_pb2.STAGE_EXPORTING
    if name == "trainer":
        # With a checkpoint behind it there is something to resume from.
        return event.HasField("checkpoint_committed")
    return event.progressed.metrics.step >= KILL_AT_STEP


def _assert_completed(run: run_pb2.Run, name: str) -> None:
    assert run.state == run_pb2.RUN_STATE_COMPLETED, run.fault
    assert run.metrics.step == STEPS
    warnings = [warning.message for warning in run.warnings]
    if name == "trainer":
        assert [attempt.attempt for attempt in run.attempts] == [1, 2]
        assert run.attempts[1].resumed_from_step > 0
        assert run.attempts[1].fencing_epoch > run.attempts[0].fencing_epoch
        assert "Connection to GPU node lost" in warnings
        assert "Retrying after transient failure" in warnings
    elif name != "postgres":
        # A control plane that blinks must not cost a healthy run its attempt.
        assert len(run.attempts) == 1, warnings


def _assert_told_once(client: Client, run: str, told: list[event_pb2.Event]) -> None:
    """WatchRun and the stream hold the same events, each once and in sequence."""
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    deadline = time.monotonic() + RELAY_SECONDS
    while True:
        heard = subscriber.read_stored(client.credentials.nats_url, project="local", run=run)
        if len(heard.events) >= len(told) or time.monotonic() > deadline:
            break
    assert [event.sequence for event in heard.events] == [event.sequence for event in told]
    assert [event.event_id for event in heard.events] == [event.event_id for event in told]


def _assert_charged_once(client: Client, run: run_pb2.Run, before: billing_pb2.Account) -> None:
    receipt = settled(client, run.name)
    assert sorted(entry.kind for entry in receipt.entries) == [
        billing_pb2.ENTRY_KIND_HOLD,
        billing_pb2.ENTRY_KIND_CAPTURE,
        billing_pb2.ENTRY_KIND_RELEASE,
    ]
    assert receipt.billable_minutes == receipt.billable_millis // MILLIS_PER_MINUTE
    rate = run.quote.rate_per_minute.amount_micros
    assert receipt.charged.amount_micros == receipt.billable_minutes * rate
    after = client.billing.account()
    assert after.held.amount_micros == before.held.amount_micros
    assert after.available.amount_micros == (
        before.available.amount_micros - receipt.charged.amount_micros
    )
    check = client.billing.verify(run.name)
    assert check.consistent, list(check.differences)
