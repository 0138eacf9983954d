"""The bill of a run: charge, release, refund, and the sentences that explain them."""

from billing.domain.ledger import EntryKind, Transfer
from billing.domain.settlement import bill_of, differences, hold_transfer, release_whole, settle
from billing.domain.timeline import Clock, RunEnd, timeline
from tests.support.money import (
    CANCELLED,
    COMPLETED,
    START,
    Story,
    a_hold,
    a_run,
    a_training_run,
    failed,
)


def ended(story: Story, outcome: RunEnd, **hold: object) -> dict[EntryKind, Transfer]:
    story.ends(outcome)
    transfers = settle(a_hold(**hold), timeline(story.facts), outcome, event_time=START)
    return {each.kind: each for each in transfers}


def trained(seconds: float) -> Story:
    return a_training_run(start=100).at(100 + seconds).clock(Clock.STOPPED)


def test_the_hold_reserves_the_maximum_and_says_what_for() -> None:
    transfer = hold_transfer(a_hold(), event_time=START)
    assert (transfer.kind, transfer.amount_micros) == (EntryKind.HOLD, 3_000_000)
    assert transfer.reason == (
        "Reserved for the run: at most 60 minutes on t4 at 0.05 credits a minute. "
        "What is not used comes back."
    )


def test_a_completed_run_pays_whole_minutes_and_gets_the_rest_back() -> None:
    """A1."""
    entries = ended(trained(479), COMPLETED)
    assert set(entries) == {EntryKind.CAPTURE, EntryKind.RELEASE}
    assert entries[EntryKind.CAPTURE].amount_micros == 7 * 50_000
    assert entries[EntryKind.CAPTURE].minutes == 7
    assert entries[EntryKind.CAPTURE].reason == (
        "Charged 7 minutes at 0.05 credits a minute: the run trained for 7 min 59 s, "
        "rounded down to whole minutes."
    )
    assert entries[EntryKind.RELEASE].amount_micros == 53 * 50_000


def test_a_run_shorter_than_a_minute_shows_a_charge_of_nothing_and_why() -> None:
    """A1."""
    entries = ended(trained(42), COMPLETED)
    assert entries[EntryKind.CAPTURE].amount_micros == 0
    assert entries[EntryKind.CAPTURE].reason == (
        "Charged nothing: the run trained for 42 s, and only whole minutes are charged."
    )
    assert entries[EntryKind.RELEASE].amount_micros == 3_000_000


def test_a_run_that_never_trained_is_charged_nothing() -> None:
    """001-02, 001-03."""
    entries = ended(a_run().at(7200), CANCELLED)
    assert entries[EntryKind.CAPTURE].amount_micros == 0
    assert entries[EntryKind.CAPTURE].reason == (
        "Charged nothing: the run ended before any training that counts."
    )


def test_a_cancelled_run_pays_its_minutes_and_is_not_refunded() -> None:
    """000-06, 001-31: cancel at 2 min 59 s -> 2 minutes charged, no refund."""
    entries = ended(trained(179), CANCELLED)
    assert EntryKind.REFUND not in entries
    assert entries[EntryKind.CAPTURE].minutes == 2
    assert entries[EntryKind.CAPTURE].reason.endswith(
        "Minutes used before a cancellation are not given back."
    )


def test_a_failure_that_the_platform_answers_for_is_charged_and_refunded_in_full() -> None:
    """A2, 000-02, 000-10: two visible entries."""
    entries = ended(trained(600), failed(code="RUNTIME_GPU_OOM"))
    assert entries[EntryKind.CAPTURE].amount_micros == 10 * 50_000
    assert entries[EntryKind.REFUND].amount_micros == 10 * 50_000
    assert entries[EntryKind.REFUND].minutes == 10
    assert "RUNTIME_GPU_OOM" in entries[EntryKind.REFUND].reason


def test_a_refundable_failure_within_the_first_minute_shows_a_refund_of_nothing() -> None:
    """A2: the policy is applied visibly also where nothing had been charged."""
    entries = ended(trained(30), failed())
    assert entries[EntryKind.REFUND].amount_micros == 0
    assert entries[EntryKind.REFUND].reason.endswith("nothing had been charged.")


def test_a_failure_on_a_model_that_nobody_vouches_for_stays_charged_with_the_reason() -> None:
    """000-04: the charge stays and its reason is recorded."""
    entries = ended(trained(600), failed(refundable=False))
    assert EntryKind.REFUND not in entries
    assert entries[EntryKind.CAPTURE].amount_micros == 500_000
    assert "the platform does not vouch for its model" in entries[EntryKind.CAPTURE].reason


def test_a_failure_by_the_users_inputs_stays_charged_with_the_reason() -> None:
    outcome = failed(refundable=False, code="DATASET_ROW_INVALID", code_refundable=False)
    reason = ended(trained(600), outcome)[EntryKind.CAPTURE].reason
    assert reason.endswith(
        "Not refunded: the run failed with DATASET_ROW_INVALID, whose cause lies in its inputs."
    )


def test_never_more_is_charged_than_was_reserved() -> None:
    entries = ended(trained(3 * 3600), COMPLETED)
    assert entries[EntryKind.CAPTURE].amount_micros == 3_000_000
    assert entries[EntryKind.CAPTURE].minutes == 60
    assert "never charged" in entries[EntryKind.CAPTURE].reason
    assert EntryKind.RELEASE not in entries


def test_a_reservation_that_is_no_whole_number_of_minutes_charges_only_whole_ones() -> None:
    entries = ended(trained(3600), COMPLETED, amount_micros=149_999)
    assert entries[EntryKind.CAPTURE].amount_micros == 100_000
    assert entries[EntryKind.RELEASE].amount_micros == 49_999


def test_a_free_tier_shows_its_minutes_and_charges_nothing() -> None:
    entries = ended(trained(120), COMPLETED, rate_micros_per_minute=0, amount_micros=0)
    assert (entries[EntryKind.CAPTURE].amount_micros, entries[EntryKind.CAPTURE].minutes) == (0, 2)


def test_the_keys_of_a_runs_entries_are_fixed_by_run_and_kind() -> None:
    keys = {each.posting_key for each in ended(trained(60), failed()).values()}
    run = a_hold().run
    assert keys == {f"{run}/capture", f"{run}/release", f"{run}/refund"}
    release = release_whole(a_hold(), reason="The submission was refused.", event_time=START)
    assert release.posting_key == f"{run}/release"


def test_ledger_and_events_that_agree_have_no_differences() -> None:
    recorded = tuple(ended(trained(600), failed()).values())
    assert differences(recorded, recorded) == ()


def test_each_difference_is_told_in_a_sentence() -> None:
    recorded = ended(trained(600), failed())
    recomputed = ended(trained(660), COMPLETED)
    told = differences(tuple(recorded.values()), tuple(recomputed.values()))
    assert told == (
        "The capture entry is 0.5 credits; the events give 0.55.",
        "The capture entry counts 10 minutes; the events give 11.",
        "The release entry is 2.5 credits; the events give 2.45.",
        "The ledger has a refund entry that the events do not give.",
    )
    assert differences((), tuple(recomputed.values()))[0].startswith("The ledger has no capture")


def test_the_sums_of_a_bill_come_from_its_entries() -> None:
    entries = (hold_transfer(a_hold(), event_time=START), *ended(trained(600), failed()).values())
    bill = bill_of(entries)
    assert bill.held_micros == bill.charged_micros + bill.released_micros == 3_000_000
    assert (bill.charged_micros, bill.refunded_micros, bill.minutes) == (500_000, 500_000, 10)
