"""Runs settled from their events on a real Postgres: charge, refund, replays, and verification."""

import asyncio
import random

import pytest

from lexicon.faults import Fault, FaultCode
from tests.integration.billing.conftest import Desk
from tests.integration.billing.test_ledger_rpc import (
    RATE,
    account,
    entries,
    grant_request,
    hold_request,
    release_request,
)
from tests.support.run_events import RunStory
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2

pytestmark = pytest.mark.integration

RUN = "projects/acme/runs/run-1"
KINDS = billing_pb2.EntryKind


async def prepared(desk: Desk, run: str = "run-1") -> RunStory:
    """A project with 100 credits and a hold for one run."""
    await desk.operator.GrantCredits(grant_request(100))
    await desk.service.HoldFunds(hold_request(run))
    return RunStory(f"projects/acme/runs/{run}")


async def bill(desk: Desk, run: str = RUN) -> dict[str, tuple[int, int]]:
    """Amount and minutes of each entry of a run by kind."""
    found = await entries(desk, run=run)
    return {KINDS.Name(each.kind): (each.amount.amount_micros, each.minutes) for each in found}


async def receipt(desk: Desk, run: str = RUN) -> billing_pb2.Receipt:
    response: billing_service_pb2.GetReceiptResponse = await desk.user.GetReceipt(
        billing_service_pb2.GetReceiptRequest(run=run)
    )
    return response.receipt


async def test_a_completed_run_is_charged_whole_minutes_and_the_rest_comes_free(
    desk: Desk,
) -> None:
    """A1: the charge is floor(billable minutes) times the rate; the ledger sums to zero."""
    story = await prepared(desk)
    story.trains(479).at(700).ends(run_pb2.RUN_STATE_COMPLETED)
    await desk.handle(story.events)
    assert await bill(desk) == {
        "ENTRY_KIND_HOLD": (60 * RATE, 0),
        "ENTRY_KIND_CAPTURE": (7 * RATE, 7),
        "ENTRY_KIND_RELEASE": (53 * RATE, 0),
    }
    found = await account(desk)
    assert found.held.amount_micros == 0
    assert found.posted.amount_micros == 100_000_000 - 7 * RATE
    final = await receipt(desk)
    assert final.settled
    assert (final.billable_minutes, final.billable_millis) == (7, 479_000)
    assert [each.reason for each in final.intervals if each.billable] == ["training"]
    await desk.check_books()


async def test_waiting_is_free(desk: Desk) -> None:
    """001-02, 001-03."""
    story = await prepared(desk)
    story.at(0).submitted().at(7200).ends(run_pb2.RUN_STATE_CANCELLED)
    await desk.handle(story.events)
    assert (await bill(desk))["ENTRY_KIND_CAPTURE"] == (0, 0)
    assert (await account(desk)).available.amount_micros == 100_000_000


async def test_a_lost_attempt_is_free_when_the_clock_stepped_back_within_it(desk: Desk) -> None:
    """A6: the ledger, the receipt and the verification read the same events, and charge none."""
    story = await prepared(desk)
    story.at(0).submitted().at(600).moves(
        run_pb2.RUN_STATE_TRAINING, fault_pb2.STAGE_TRAINING, attempt=1
    )
    story.clock(event_pb2.CLOCK_CHANGE_STARTED).at(60).clock(event_pb2.CLOCK_CHANGE_PAUSED)
    story.clock(event_pb2.CLOCK_CHANGE_RESUMED).at(600).clock(event_pb2.CLOCK_CHANGE_VOIDED)
    story.at(700).ends(run_pb2.RUN_STATE_CANCELLED)
    await desk.handle(story.events)
    assert (await bill(desk))["ENTRY_KIND_CAPTURE"] == (0, 0)
    assert (await receipt(desk)).billable_millis == 0
    desk.log.events = story.events
    verdict = await desk.user.VerifyRun(billing_service_pb2.VerifyRunRequest(run=RUN))
    assert verdict.consistent
    assert verdict.recomputed.billable_millis == 0
    await desk.check_books()


async def test_a_cancelled_run_pays_used_minutes_and_has_no_refund(desk: Desk) -> None:
    """000-06, 001-31: cancel at 2 min 59 s -> 2 minutes, no refund row."""
    story = await prepared(desk)
    story.trains(179).ends(run_pb2.RUN_STATE_CANCELLED)
    await desk.handle(story.events)
    kinds = await bill(desk)
    assert kinds["ENTRY_KIND_CAPTURE"] == (2 * RATE, 2)
    assert "ENTRY_KIND_REFUND" not in kinds


async def test_a_failed_verdict_run_is_charged_and_refunded_within_the_same_moment(
    desk: Desk,
) -> None:
    """A2, 000-02, 000-03, 000-10: two visible entries, balance restored, exactly once."""
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM")
    await desk.handle(story.events)
    await desk.handle(story.events)
    kinds = await bill(desk)
    assert kinds["ENTRY_KIND_CAPTURE"] == kinds["ENTRY_KIND_REFUND"] == (10 * RATE, 10)
    assert len(await entries(desk, run=RUN)) == 4
    assert (await account(desk)).available.amount_micros == 100_000_000
    await desk.check_books()


async def test_a_failed_unverdict_run_stays_charged_with_the_reason_recorded(desk: Desk) -> None:
    """000-04."""
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM", refundable=False)
    await desk.handle(story.events)
    assert "ENTRY_KIND_REFUND" not in await bill(desk)
    (capture,) = [
        each for each in await entries(desk, run=RUN) if each.kind == billing_pb2.ENTRY_KIND_CAPTURE
    ]
    assert "Not refunded: the run failed with RUNTIME_GPU_OOM" in capture.reason


async def test_events_in_any_order_and_many_times_give_the_same_ledger(desk: Desk) -> None:
    """A2: exactly once, whatever the delivery."""
    await desk.operator.GrantCredits(grant_request(100))
    rng = random.Random(7)
    bills = []
    for number in range(6):
        run = f"run-{number}"
        await desk.service.HoldFunds(hold_request(run))
        story = RunStory(f"projects/acme/runs/{run}").trains(200)
        story.ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_WORKER_LOST")
        deliveries = story.events * 3
        rng.shuffle(deliveries)
        await desk.handle(deliveries)
        bills.append(await bill(desk, story.run))
    assert all(each == bills[0] for each in bills)
    assert bills[0]["ENTRY_KIND_CAPTURE"] == (3 * RATE, 3)
    await desk.check_books()


async def test_one_event_delivered_by_two_ways_at_once_counts_once(desk: Desk) -> None:
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM")
    await asyncio.gather(*(desk.handle(story.events) for _ in range(10)))
    assert len(await entries(desk, run=RUN)) == 4
    await desk.check_books()


async def test_a_run_is_not_settled_while_an_event_is_missing(desk: Desk) -> None:
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_COMPLETED)
    missing = story.events[4]
    await desk.handle([each for each in story.events if each is not missing])
    assert set(await bill(desk)) == {"ENTRY_KIND_HOLD"}
    assert not (await receipt(desk)).settled
    await desk.handle([missing])
    assert (await bill(desk))["ENTRY_KIND_CAPTURE"] == (10 * RATE, 10)


async def test_a_handler_that_dies_before_its_commit_leaves_nothing_behind(desk: Desk) -> None:
    """The inbox row and the posting are one transaction."""
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_COMPLETED)
    *before, last = story.events
    await desk.handle(before)
    broken = await desk.pool.acquire()
    # The entries table refuses, as a full disk would, after the inbox was already marked.
    await broken.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'disk full'; END $$"
    )
    await broken.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    with pytest.raises(Exception, match="disk full"):
        await desk.handle([last])
    await broken.execute("DROP TRIGGER fail ON entries")
    await desk.pool.release(broken)
    assert set(await bill(desk)) == {"ENTRY_KIND_HOLD"}
    await desk.handle([last])
    assert (await bill(desk))["ENTRY_KIND_CAPTURE"] == (10 * RATE, 10)
    await desk.check_books()


async def test_settling_and_releasing_at_once_end_one_way(desk: Desk) -> None:
    """Attack 15: refund-vs-complete, cancel-vs-complete."""
    await desk.operator.GrantCredits(grant_request(100))
    for number in range(10):
        run = f"run-{number}"
        await desk.service.HoldFunds(hold_request(run))
        story = RunStory(f"projects/acme/runs/{run}").trains(120)
        story.ends(run_pb2.RUN_STATE_COMPLETED)
        await desk.handle(story.events[:-1])
        await asyncio.gather(
            desk.handle(story.events[-1:]), desk.service.ReleaseHold(release_request(run))
        )
        kinds = await bill(desk, story.run)
        captured = kinds.get("ENTRY_KIND_CAPTURE", (0, 0))[0]
        assert captured + kinds["ENTRY_KIND_RELEASE"][0] == 60 * RATE
    assert (await account(desk)).held.amount_micros == 0
    await desk.check_books()


async def test_a_run_without_a_hold_is_never_charged(desk: Desk) -> None:
    await desk.operator.GrantCredits(grant_request(100))
    story = RunStory(RUN).trains(600).ends(run_pb2.RUN_STATE_COMPLETED)
    await desk.handle(story.events)
    assert len(await entries(desk)) == 1
    with pytest.raises(Fault) as caught:
        await receipt(desk)
    assert caught.value.code is FaultCode.BILLING_HOLD_NOT_FOUND


async def test_a_receipt_under_way_shows_the_time_that_counts_so_far(desk: Desk) -> None:
    story = await prepared(desk)
    story.at(0).submitted().at(50).clock(event_pb2.CLOCK_CHANGE_STARTED)
    await desk.handle(story.events)
    so_far = await receipt(desk)
    assert not so_far.settled
    assert so_far.billable_millis > 0
    assert not so_far.intervals[-1].HasField("end_time")


async def test_the_ledger_of_a_run_is_recomputed_from_the_scheduler_log_and_agrees(
    desk: Desk,
) -> None:
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM")
    desk.log.events = story.events
    await desk.handle(story.events)
    verdict = await desk.user.VerifyRun(billing_service_pb2.VerifyRunRequest(run=RUN))
    assert verdict.consistent
    assert list(verdict.differences) == []
    assert verdict.recomputed.refunded.amount_micros == 10 * RATE


async def test_a_ledger_that_does_not_follow_from_the_events_is_called_out(desk: Desk) -> None:
    story = await prepared(desk)
    story.trains(600).ends(run_pb2.RUN_STATE_COMPLETED)
    await desk.handle(story.events)
    desk.log.events = RunStory(RUN).trains(300).ends(run_pb2.RUN_STATE_COMPLETED).events
    verdict = await desk.user.VerifyRun(billing_service_pb2.VerifyRunRequest(run=RUN))
    assert not verdict.consistent
    assert verdict.differences[0] == "The capture entry is 0.5 credits; the events give 0.25."


async def test_a_released_submission_verifies(desk: Desk) -> None:
    await prepared(desk)
    await desk.service.ReleaseHold(release_request())
    verdict = await desk.user.VerifyRun(billing_service_pb2.VerifyRunRequest(run=RUN))
    assert verdict.consistent
