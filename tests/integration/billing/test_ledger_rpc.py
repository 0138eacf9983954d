"""Billing by RPC on a real Postgres: grants, plans, holds, releases, the ledger and its guards."""

import asyncio

import asyncpg
import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.integration.billing.conftest import Desk
from tests.support.desk import calling
from tests.support.money import START
from tunesmith.api.billing.v1 import (
    billing_pb2,
    billing_service_pb2,
    billing_service_pb2_grpc,
)

pytestmark = pytest.mark.integration

RATE = 50_000


def grant_request(amount: int, request_id: str = "g1") -> billing_service_pb2.GrantCreditsRequest:
    return billing_service_pb2.GrantCreditsRequest(
        request_id=request_id, parent="projects/acme", amount_micros=amount * 1_000_000
    )


def hold_request(run: str = "run-1", minutes: int = 60) -> billing_service_pb2.HoldFundsRequest:
    request = billing_service_pb2.HoldFundsRequest(
        request_id=f"hold-{run}",
        run=f"projects/acme/runs/{run}",
        quote=billing_pb2.Quote(
            maximum=billing_pb2.Money(amount_micros=minutes * RATE),
            maximum_minutes=minutes,
            rate_per_minute=billing_pb2.Money(amount_micros=RATE),
            gpu_tier="t4",
        ),
    )
    request.event_time.FromDatetime(START)
    return request


def release_request(run: str = "run-1") -> billing_service_pb2.ReleaseHoldRequest:
    return billing_service_pb2.ReleaseHoldRequest(
        request_id=f"release-{run}",
        run=f"projects/acme/runs/{run}",
        reason="The submission was refused.",
    )


async def account(desk: Desk) -> billing_pb2.Account:
    request = billing_service_pb2.GetAccountRequest(name="projects/acme/account")
    response: billing_service_pb2.GetAccountResponse = await desk.user.GetAccount(request)
    return response.account


async def entries(desk: Desk, **filters: object) -> list[billing_pb2.LedgerEntry]:
    request = billing_service_pb2.ListTransactionsRequest(parent="projects/acme", **filters)  # type: ignore[arg-type]
    response = await desk.user.ListTransactions(request)
    return list(response.entries)


async def code_of(call: object) -> FaultCode:
    with pytest.raises(Fault) as caught:
        await call  # type: ignore[misc]
    return caught.value.code


async def test_a_project_seen_for_the_first_time_has_an_empty_account(desk: Desk) -> None:
    found = await account(desk)
    assert found.plan == "free"
    assert found.posted.amount_micros == found.held.amount_micros == 0
    assert found.available.currency_code == "CREDIT"
    await desk.check_books()


async def test_a_grant_adds_credits_once_however_often_it_is_asked_for(desk: Desk) -> None:
    responses = await asyncio.gather(
        *(desk.operator.GrantCredits(grant_request(100)) for _ in range(20))
    )
    assert len({response.entry.name for response in responses}) == 1
    assert (await account(desk)).available.amount_micros == 100_000_000
    (entry,) = await entries(desk)
    assert entry.kind == billing_pb2.ENTRY_KIND_GRANT
    assert (entry.debit_account, entry.credit_account) == (
        "platform/grants",
        "projects/acme/available",
    )
    assert await code_of(desk.operator.GrantCredits(grant_request(99))) is (
        FaultCode.INPUT_REQUEST_ID_REUSED
    )
    await desk.check_books()


@pytest.mark.parametrize("amount_micros", [0, -5, 2**62])
async def test_amounts_that_cannot_be_booked_are_refused(desk: Desk, amount_micros: int) -> None:
    request = billing_service_pb2.GrantCreditsRequest(
        request_id="g", parent="projects/acme", amount_micros=amount_micros
    )
    assert await code_of(desk.operator.GrantCredits(request)) is FaultCode.BILLING_AMOUNT_INVALID
    assert await entries(desk) == []


async def test_a_plan_must_be_one_of_the_catalog(desk: Desk) -> None:
    request = billing_service_pb2.SetPlanRequest(
        request_id="p1", parent="projects/acme", plan="pro"
    )
    assert (await desk.operator.SetPlan(request)).account.plan == "pro"
    unknown = billing_service_pb2.SetPlanRequest(
        request_id="p2", parent="projects/acme", plan="gold"
    )
    assert await code_of(desk.operator.SetPlan(unknown)) is FaultCode.BILLING_PLAN_UNKNOWN
    assert (await account(desk)).plan == "pro"


async def test_a_hold_reserves_the_maximum_and_a_replay_finds_it_again(desk: Desk) -> None:
    await desk.operator.GrantCredits(grant_request(10))
    first = await desk.service.HoldFunds(hold_request())
    again = await desk.service.HoldFunds(hold_request())
    assert first.entry.name == again.entry.name
    found = await account(desk)
    assert found.posted.amount_micros == 10_000_000
    assert found.held.amount_micros == 3_000_000
    assert found.available.amount_micros == 7_000_000
    other = await code_of(desk.service.HoldFunds(hold_request(minutes=61)))
    assert other is FaultCode.INPUT_REQUEST_ID_REUSED
    await desk.check_books()


async def test_too_little_credit_is_an_answer_with_both_numbers_and_leaves_nothing(
    desk: Desk,
) -> None:
    await desk.operator.GrantCredits(grant_request(2))
    with pytest.raises(Fault) as caught:
        await desk.service.HoldFunds(hold_request())
    assert caught.value.code is FaultCode.BILLING_FUNDS_INSUFFICIENT
    assert caught.value.metadata["required_micros"] == "3000000"
    assert caught.value.metadata["available_micros"] == "2000000"
    assert (await account(desk)).held.amount_micros == 0
    assert len(await entries(desk)) == 1
    await desk.operator.GrantCredits(grant_request(1, "g2"))
    assert (await desk.service.HoldFunds(hold_request())).account.available.amount_micros == 0


async def test_of_1000_holds_at_once_exactly_those_that_fit_succeed(desk: Desk) -> None:
    """Attack 15: one wallet, no negative balance, reservations sum right."""
    await desk.operator.GrantCredits(grant_request(100))
    requests = [hold_request(f"run-{number}", minutes=40) for number in range(1000)]
    results = await asyncio.gather(
        *(desk.service.HoldFunds(request) for request in requests), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, Fault)]
    assert {each.code for each in refused} == {FaultCode.BILLING_FUNDS_INSUFFICIENT}
    assert len(results) - len(refused) == 50
    found = await account(desk)
    assert (found.available.amount_micros, found.held.amount_micros) == (0, 100_000_000)
    await desk.check_books()


async def test_double_submission_of_one_run_holds_once(desk: Desk) -> None:
    """Attack 15: double submit."""
    await desk.operator.GrantCredits(grant_request(100))
    results = await asyncio.gather(*(desk.service.HoldFunds(hold_request()) for _ in range(50)))
    assert len({each.entry.name for each in results}) == 1
    assert (await account(desk)).held.amount_micros == 3_000_000
    await desk.check_books()


async def test_a_release_gives_the_hold_back_whole_and_once(desk: Desk) -> None:
    await desk.operator.GrantCredits(grant_request(10))
    await desk.service.HoldFunds(hold_request())
    first = await desk.service.ReleaseHold(release_request())
    again = await desk.service.ReleaseHold(release_request())
    assert first.entry == again.entry
    assert first.entry.reason == "The submission was refused."
    assert (await account(desk)).available.amount_micros == 10_000_000
    assert await code_of(desk.service.HoldFunds(hold_request())) is FaultCode.BILLING_HOLD_CLOSED
    await desk.check_books()


async def test_a_hold_that_arrives_after_its_release_is_refused(desk: Desk) -> None:
    """No orphan hold when a submission died with its hold still on the way."""
    await desk.operator.GrantCredits(grant_request(10))
    assert not (await desk.service.ReleaseHold(release_request())).HasField("entry")
    assert await code_of(desk.service.HoldFunds(hold_request())) is FaultCode.BILLING_HOLD_CLOSED
    assert (await account(desk)).held.amount_micros == 0


async def test_holds_and_releases_at_once_end_with_nothing_held(desk: Desk) -> None:
    """Attack 15: whichever comes first, nothing stays reserved for a run that never was."""
    await desk.operator.GrantCredits(grant_request(100))
    runs = [f"run-{number}" for number in range(40)]
    await asyncio.gather(
        *(desk.service.HoldFunds(hold_request(run)) for run in runs),
        *(desk.service.ReleaseHold(release_request(run)) for run in runs),
        return_exceptions=True,
    )
    await asyncio.gather(*(desk.service.ReleaseHold(release_request(run)) for run in runs))
    assert (await account(desk)).held.amount_micros == 0
    assert (await account(desk)).available.amount_micros == 100_000_000
    await desk.check_books()


async def test_the_ledger_is_listed_newest_first_in_pages_without_gap_or_repetition(
    desk: Desk,
) -> None:
    for number in range(7):
        await desk.operator.GrantCredits(grant_request(1, f"g{number}"))
    seen: list[str] = []
    token = ""
    while True:
        request = billing_service_pb2.ListTransactionsRequest(
            parent="projects/acme", page_size=3, page_token=token
        )
        page = await desk.user.ListTransactions(request)
        seen += [entry.posting_key for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"projects/acme/grants/g{number}" for number in reversed(range(7))]
    forged = billing_service_pb2.ListTransactionsRequest(
        parent="projects/acme", page_token="AAAA", run="projects/acme/runs/r"
    )
    code = await code_of(desk.user.ListTransactions(forged))
    assert code is FaultCode.INPUT_PAGE_TOKEN_INVALID


async def test_another_projects_money_is_out_of_reach(desk: Desk) -> None:
    await desk.operator.GrantCredits(grant_request(10))
    async with calling(desk.address, Role.PROJECT, project="other") as channel:
        stub = billing_service_pb2_grpc.BillingServiceStub(channel)
        calls = [
            stub.GetAccount(billing_service_pb2.GetAccountRequest(name="projects/acme/account")),
            stub.ListTransactions(
                billing_service_pb2.ListTransactionsRequest(parent="projects/acme")
            ),
            stub.GetReceipt(billing_service_pb2.GetReceiptRequest(run="projects/acme/runs/r")),
            stub.VerifyRun(billing_service_pb2.VerifyRunRequest(run="projects/acme/runs/r")),
        ]
        for call in calls:
            assert await code_of(call) is FaultCode.ACCESS_PROJECT_FORBIDDEN


async def test_users_can_neither_grant_nor_hold(desk: Desk) -> None:
    assert await code_of(desk.user.GrantCredits(grant_request(10))) is FaultCode.ACCESS_DENIED
    assert await code_of(desk.user.HoldFunds(hold_request())) is FaultCode.ACCESS_DENIED
    assert await code_of(desk.user.ReleaseHold(release_request())) is FaultCode.ACCESS_DENIED
    assert await code_of(desk.service.GrantCredits(grant_request(10))) is FaultCode.ACCESS_DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET amount_micros = 0",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "UPDATE accounts SET balance_micros = -1 WHERE kind = 'available'",
        "UPDATE facts SET attempt = 9",
        "DELETE FROM facts",
    ],
)
async def test_the_database_itself_refuses_to_change_the_past(desk: Desk, statement: str) -> None:
    await desk.operator.GrantCredits(grant_request(10))
    await desk.pool.execute("INSERT INTO inbox (run) VALUES ('r')")
    await desk.pool.execute(
        "INSERT INTO facts (run, sequence, event_time, attempt, phase, reason) "
        "VALUES ('r', 1, now(), 0, 'queued', '')"
    )
    with pytest.raises(asyncpg.PostgresError):
        await desk.pool.execute(statement)
    assert len(await entries(desk)) == 1
