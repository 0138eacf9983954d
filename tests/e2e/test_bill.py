"""What a run costs, and that the ledger can prove it."""

import time
from collections import Counter

import pytest

from tests.demo import lesson
from tests.e2e.conftest import Taught
from tests.support.whole_stack import BASE, settled
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MILLIS_PER_MINUTE = 60_000


def test_the_charge_is_whole_minutes_times_the_rate_and_the_rest_comes_back(
    taught: Taught,
) -> None:
    """001-29, 001-31"""
    receipt = taught.receipt
    assert receipt.billable_minutes == receipt.billable_millis // MILLIS_PER_MINUTE
    rate = taught.run.quote.rate_per_minute.amount_micros
    assert receipt.charged.amount_micros == receipt.billable_minutes * rate
    assert receipt.held.amount_micros == taught.run.quote.maximum.amount_micros
    assert receipt.released.amount_micros == (
        receipt.held.amount_micros - receipt.charged.amount_micros
    )
    assert receipt.refunded.amount_micros == 0
    assert taught.run.cost == receipt.charged


def test_queued_and_waiting_time_is_free(taught: Taught) -> None:
    """001-02, 001-03"""
    intervals = taught.receipt.intervals
    assert intervals
    billable = sum(_millis(interval) for interval in intervals if interval.billable)
    assert billable == pytest.approx(taught.receipt.billable_millis, abs=len(intervals))
    before = [i for i in intervals if i.reason in {"queued", "waiting for gpu", "provisioning"}]
    assert not any(interval.billable for interval in before)
    assert not intervals[0].billable


def test_the_ledger_sums_to_zero_and_agrees_with_the_events(client: Client, taught: Taught) -> None:
    """000-03"""
    balances: Counter[str] = Counter()
    for entry in client.billing.transactions():
        assert entry.amount.amount_micros >= 0
        assert entry.debit_account != entry.credit_account
        balances[entry.debit_account] -= entry.amount.amount_micros
        balances[entry.credit_account] += entry.amount.amount_micros
    assert sum(balances.values()) == 0
    account = client.billing.account()
    assert balances["projects/local/available"] == account.available.amount_micros
    assert balances["projects/local/held"] == account.held.amount_micros
    check = client.billing.verify(taught.run.name)
    assert check.consistent, list(check.differences)


def test_a_cancelled_run_pays_for_its_whole_minutes_and_leaves_nothing(
    client: Client, habit: str
) -> None:
    """000-06, 001-08, 001-33, 001-41"""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.datasets[:] = [habit]
    spec.training.max_steps = 20_000
    run = client.runs.submit(spec)
    for event in client.runs.watch(run.name):
        billable = event.progressed.clocks.billable
        if event.HasField("progressed") and billable.ToTimedelta().total_seconds() > 61:
            break
    cancelled = client.runs.cancel(run.name)
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    receipt = settled(client, run.name)
    assert receipt.billable_minutes == 1
    assert receipt.charged.amount_micros == run.quote.rate_per_minute.amount_micros
    kinds = sorted(entry.kind for entry in receipt.entries)
    assert kinds == [
        billing_pb2.ENTRY_KIND_HOLD,
        billing_pb2.ENTRY_KIND_CAPTURE,
        billing_pb2.ENTRY_KIND_RELEASE,
    ]
    assert not client.artifacts.list(run=run.name)
    found = client.runs.get(run.name)
    assert found.metrics.step > 0
    assert run.name in {listed.name for listed in client.runs.list(limit=10)}
    assert client.billing.verify(run.name).consistent
    _node_is_free(client)


def _node_is_free(client: Client) -> None:
    deadline = time.monotonic() + 30
    while any(node.run for node in client.nodes.list()):
        assert time.monotonic() < deadline, "the node still holds the cancelled run"
        time.sleep(0.2)


def _millis(interval: billing_pb2.Interval) -> int:
    end, start = interval.end_time, interval.start_time
    return (end.ToMilliseconds()) - (start.ToMilliseconds())
