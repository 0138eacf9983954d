"""BillingService: the ledger as users, operators and the other services see it."""

from collections.abc import Collection
from typing import Any, Final

import grpc

from billing import wire
from billing.domain.ledger import MAX_AMOUNT_MICROS, Entry, EntryKind, Transfer, grant
from billing.domain.settlement import (
    Bill,
    bill_of,
    differences,
    hold_transfer,
    release_whole,
    settle,
)
from billing.domain.timeline import Fact, outcome_of, timeline
from billing.store import NEWEST, BillRow, BillState, Store, Unit
from chassis import idempotency, paging
from chassis.identity import current_caller
from lexicon.faults import Fault, FaultCode
from lexicon.names import AccountName, ProjectName, RunName
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_PAGE: Final = 50
DEFAULT_REASON: Final = "grant"
MAX_REASON_CHARACTERS: Final = 500
_EVENTS_PAGE: Final = 1000


class BillingService(billing_service_pb2_grpc.BillingServiceServicer):
    """Answers about money; see the contract for each method."""

    def __init__(
        self, store: Store, *, plans: Collection[str], scheduler: grpc.aio.Channel
    ) -> None:
        self._store = store
        self._plans = plans
        self._events = event_service_pb2_grpc.EventServiceStub(scheduler)

    async def GetAccount(
        self, request: billing_service_pb2.GetAccountRequest, _context: Context
    ) -> billing_service_pb2.GetAccountResponse:
        name = AccountName.parse(request.name)
        current_caller().require_project(name)
        async with self._store.unit() as unit:
            wallet = await unit.wallet(name.project)
        return billing_service_pb2.GetAccountResponse(account=wire.wallet_to_proto(wallet))

    async def ListTransactions(
        self,
        request: billing_service_pb2.ListTransactionsRequest,
        _context: Context,
    ) -> billing_service_pb2.ListTransactionsResponse:
        parent = ProjectName.parse(request.parent)
        current_caller().require_project(parent)
        run = str(RunName.parse(request.run)) if request.run else ""
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE)
        scope = f"transactions {parent} {run}"
        before = paging.read_token(request.page_token, scope=scope, first=NEWEST)
        async with self._store.unit() as unit:
            entries = await unit.list_entries(
                parent.project, run=run, before_position=before, count=size + 1
            )
        page = entries[:size]
        more = len(entries) > size
        return billing_service_pb2.ListTransactionsResponse(
            entries=[wire.entry_to_proto(entry) for entry in page],
            next_page_token=paging.make_token(scope=scope, position=page[-1].position)
            if more
            else "",
        )

    async def GetReceipt(
        self, request: billing_service_pb2.GetReceiptRequest, _context: Context
    ) -> billing_service_pb2.GetReceiptResponse:
        name = RunName.parse(request.run)
        current_caller().require_project(name)
        run = str(name)
        async with self._store.unit() as unit:
            row = await _bill(unit, run)
            entries = await unit.entries_of_run(run)
            line = timeline(await unit.facts(run), now=await unit.now())
        receipt = wire.receipt_to_proto(
            run=run,
            bill=_sums(entries),
            timeline=line,
            entries=[wire.entry_to_proto(entry) for entry in entries],
            settled=row.state is not BillState.OPEN,
        )
        return billing_service_pb2.GetReceiptResponse(receipt=receipt)

    async def VerifyRun(
        self, request: billing_service_pb2.VerifyRunRequest, _context: Context
    ) -> billing_service_pb2.VerifyRunResponse:
        name = RunName.parse(request.run)
        current_caller().require_project(name)
        run = str(name)
        async with self._store.unit() as unit:
            row = await _bill(unit, run)
            entries = await unit.entries_of_run(run)
        facts = await self._facts_of_log(run)
        recorded = tuple(entry.transfer for entry in entries)
        line = timeline(facts)
        recomputed = _before_the_end(row, recorded)
        end = outcome_of(facts)
        if end is not None:
            recomputed += settle(row.hold, line, end[0], event_time=end[1])
        found = differences(recorded, recomputed)
        receipt = wire.receipt_to_proto(
            run=run,
            bill=bill_of(recomputed),
            timeline=line,
            entries=[wire.transfer_to_proto(each) for each in recomputed],
            settled=end is not None,
        )
        return billing_service_pb2.VerifyRunResponse(
            consistent=not found, recomputed=receipt, differences=found
        )

    async def GrantCredits(
        self, request: billing_service_pb2.GrantCreditsRequest, _context: Context
    ) -> billing_service_pb2.GrantCreditsResponse:
        project = ProjectName.parse(request.parent).project
        _check_amount(request.amount_micros)
        reason = _reason(request.reason, default=DEFAULT_REASON)
        async with self._store.unit() as unit:
            answer = await unit.answers.recall(project, request)
            if answer is not None:
                return billing_service_pb2.GrantCreditsResponse.FromString(answer)
            await unit.wallet(project)
            transfer = grant(
                project=project,
                request_id=request.request_id,
                amount_micros=request.amount_micros,
                reason=reason,
                event_time=await unit.now(),
            )
            (entry,) = await unit.post([transfer])
            response = billing_service_pb2.GrantCreditsResponse(
                entry=wire.entry_to_proto(entry),
                account=wire.wallet_to_proto(await unit.wallet(project)),
            )
            await unit.answers.remember(project, request, response)
        return response

    async def SetPlan(
        self, request: billing_service_pb2.SetPlanRequest, _context: Context
    ) -> billing_service_pb2.SetPlanResponse:
        project = ProjectName.parse(request.parent).project
        if request.plan not in self._plans:
            raise Fault(
                FaultCode.BILLING_PLAN_UNKNOWN,
                f"There is no plan of this name; there are {', '.join(sorted(self._plans))}.",
                field="plan",
            )
        async with self._store.unit() as unit:
            answer = await unit.answers.recall(project, request)
            if answer is not None:
                return billing_service_pb2.SetPlanResponse.FromString(answer)
            await unit.wallet(project)
            await unit.set_plan(project, request.plan)
            account = wire.wallet_to_proto(await unit.wallet(project))
            response = billing_service_pb2.SetPlanResponse(account=account)
            await unit.answers.remember(project, request, response)
        return response

    async def HoldFunds(
        self, request: billing_service_pb2.HoldFundsRequest, _context: Context
    ) -> billing_service_pb2.HoldFundsResponse:
        name = RunName.parse(request.run)
        idempotency.check_request_id(request.request_id)
        _check_quote(request.quote)
        if not request.HasField("event_time"):
            raise Fault(
                FaultCode.INPUT_FIELD_MISSING, "event_time is required.", field="event_time"
            )
        hold = wire.hold_from_proto(run=str(name), project=name.project, quote=request.quote)
        async with self._store.unit() as unit:
            await unit.wallet(name.project)
            if await unit.open_bill(hold):
                transfer = hold_transfer(hold, event_time=wire.moment(request.event_time))
                (entry,) = await unit.post([transfer])
            else:
                entry = await _first_hold(unit, hold.run, amount_micros=hold.amount_micros)
            wallet = await unit.wallet(name.project)
        return billing_service_pb2.HoldFundsResponse(
            entry=wire.entry_to_proto(entry), account=wire.wallet_to_proto(wallet)
        )

    async def ReleaseHold(
        self, request: billing_service_pb2.ReleaseHoldRequest, _context: Context
    ) -> billing_service_pb2.ReleaseHoldResponse:
        name = RunName.parse(request.run)
        idempotency.check_request_id(request.request_id)
        reason = _reason(request.reason, default="The submission did not come to be.")
        run = str(name)
        async with self._store.unit() as unit:
            await unit.wallet(name.project)
            # A delayed hold must not be made after its release: the run is barred from holds.
            if await unit.bar_bill(run=run, project=name.project):
                return billing_service_pb2.ReleaseHoldResponse()
            row = await unit.bill(run, lock=True)
            assert row is not None
            if row.state is not BillState.OPEN:
                entry = await unit.entry(f"{run}/{EntryKind.RELEASE}")
                released = entry if row.state is BillState.RELEASED else None
                return _release_response(released)
            transfer = release_whole(row.hold, reason=reason, event_time=await unit.now())
            (entry,) = await unit.post([transfer])
            await unit.close_bill(run, state=BillState.RELEASED, bill=bill_of((transfer,)))
        return _release_response(entry)

    async def _facts_of_log(self, run: str) -> list[Fact]:
        """The facts of a run, read from the scheduler's event log by RPC."""
        facts: list[Fact] = []
        token = ""
        while True:
            page = await self._events.ListEvents(
                event_service_pb2.ListEventsRequest(
                    run=run, page_size=_EVENTS_PAGE, page_token=token
                )
            )
            events: list[event_pb2.Event] = list(page.events)
            facts += [fact for fact in map(wire.fact_from_event, events) if fact is not None]
            token = page.next_page_token
            if len(events) < _EVENTS_PAGE:
                return facts


async def _bill(unit: Unit, run: str) -> BillRow:
    row = await unit.bill(run)
    if row is None:
        raise Fault(FaultCode.BILLING_HOLD_NOT_FOUND, run=run)
    return row


def _before_the_end(row: BillRow, recorded: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
    """The entries without an event: the hold, and a release of the whole hold."""
    if not recorded:
        return ()
    event_time = recorded[0].event_time
    hold = hold_transfer(row.hold, event_time=event_time)
    if row.state is not BillState.RELEASED:
        return (hold,)
    return hold, release_whole(row.hold, reason="", event_time=event_time)


async def _first_hold(unit: Unit, run: str, *, amount_micros: int) -> Entry:
    """Answers a hold that was asked for before: the first entry, if it is still held."""
    row = await unit.bill(run, lock=True)
    assert row is not None
    if row.state is BillState.RELEASED:
        raise Fault(FaultCode.BILLING_HOLD_CLOSED, run=run)
    if row.hold.amount_micros != amount_micros:
        raise Fault(
            FaultCode.INPUT_REQUEST_ID_REUSED, "The run has a hold of another amount.", run=run
        )
    entry = await unit.entry(f"{run}/{EntryKind.HOLD}")
    assert entry is not None, run
    return entry


def _sums(entries: tuple[Entry, ...]) -> Bill:
    return bill_of(tuple(entry.transfer for entry in entries))


def _release_response(entry: Entry | None) -> billing_service_pb2.ReleaseHoldResponse:
    if entry is None:
        return billing_service_pb2.ReleaseHoldResponse()
    return billing_service_pb2.ReleaseHoldResponse(entry=wire.entry_to_proto(entry))


def _check_amount(amount_micros: int) -> None:
    if not 0 < amount_micros <= MAX_AMOUNT_MICROS:
        raise Fault(
            FaultCode.BILLING_AMOUNT_INVALID,
            f"amount_micros must be 1 to {MAX_AMOUNT_MICROS}.",
            field="amount_micros",
        )


def _check_quote(quote: billing_pb2.Quote) -> None:
    amounts = (quote.maximum.amount_micros, quote.rate_per_minute.amount_micros)
    if not all(0 <= amount <= MAX_AMOUNT_MICROS for amount in amounts) or quote.maximum_minutes < 0:
        raise Fault(
            FaultCode.BILLING_AMOUNT_INVALID,
            f"The amounts of a quote must be 0 to {MAX_AMOUNT_MICROS}.",
            field="quote",
        )


def _reason(text: str, *, default: str) -> str:
    if len(text) > MAX_REASON_CHARACTERS or not text.isprintable():
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"reason must have at most {MAX_REASON_CHARACTERS} printable characters.",
            field="reason",
        )
    return text or default
