"""The ledger: transfers between accounts that sum to zero."""

import pytest

from billing.domain.ledger import (
    GRANTS_ACCOUNT,
    MAX_AMOUNT_MICROS,
    EntryKind,
    Transfer,
    accounts_of,
    apply,
    credits_text,
    grant,
    postings,
    run_transfer,
)
from lexicon.faults import Fault, FaultCode
from tests.support.money import RUN, START


def a_grant(amount_micros: int = 1_000_000) -> Transfer:
    return grant(
        project="acme",
        request_id="g1",
        amount_micros=amount_micros,
        reason="grant",
        event_time=START,
    )


def a_transfer(kind: EntryKind, amount_micros: int) -> Transfer:
    return run_transfer(
        kind, run=RUN, project="acme", amount_micros=amount_micros, reason="r", event_time=START
    )


@pytest.mark.parametrize("kind", [kind for kind in EntryKind if kind is not EntryKind.GRANT])
def test_the_two_sides_of_a_transfer_sum_to_zero(kind: EntryKind) -> None:
    sides = postings(a_transfer(kind, 5))
    assert sum(side.amount_micros for side in sides) == 0
    assert sides[0].account != sides[1].account


def test_credits_flow_from_grant_to_hold_to_charge_and_back() -> None:
    after = apply(
        {},
        [
            a_grant(),
            a_transfer(EntryKind.HOLD, 600_000),
            a_transfer(EntryKind.CAPTURE, 200_000),
            a_transfer(EntryKind.RELEASE, 400_000),
            a_transfer(EntryKind.REFUND, 200_000),
        ],
    )
    assert after == {
        GRANTS_ACCOUNT: -1_000_000,
        "projects/acme/available": 1_000_000,
        "projects/acme/held": 0,
        "projects/acme/spent": 0,
    }


def test_a_hold_beyond_what_is_available_is_refused_with_both_numbers() -> None:
    with pytest.raises(Fault) as caught:
        apply({}, [a_grant(250_000), a_transfer(EntryKind.HOLD, 600_000)])
    assert caught.value.code is FaultCode.BILLING_FUNDS_INSUFFICIENT
    assert "needs 0.6 credits reserved, and 0.25 are available" in caught.value.message
    assert caught.value.metadata["required_micros"] == "600000"
    assert caught.value.metadata["available_micros"] == "250000"


def test_charging_what_is_not_held_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        apply({}, [a_grant(), a_transfer(EntryKind.CAPTURE, 1)])


@pytest.mark.parametrize("amount_micros", [-1, MAX_AMOUNT_MICROS + 1])
def test_amounts_outside_their_bounds_cannot_be_built(amount_micros: int) -> None:
    with pytest.raises(AssertionError):
        a_grant(amount_micros)


def test_accounts_are_locked_in_sorted_order() -> None:
    touched = accounts_of([a_transfer(EntryKind.REFUND, 1), a_grant()])
    assert touched == tuple(sorted(touched))
    assert touched == (GRANTS_ACCOUNT, "projects/acme/available", "projects/acme/spent")


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "0"), (1, "0.000001"), (50_000, "0.05"), (12_000_000, "12")]
)
def test_amounts_read_as_credits(micros: int, text: str) -> None:
    assert credits_text(micros) == text
