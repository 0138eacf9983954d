"""Protobuf and billing's domain, there and back: pure, total over the enums."""

from datetime import UTC, datetime
from typing import Final, assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from billing.domain.ledger import Entry, EntryKind, Transfer, Wallet
from billing.domain.settlement import Bill, Hold
from billing.domain.timeline import Clock, Ending, Fact, Interval, Phase, RunEnd, Timeline
from lexicon.names import AccountName, ProjectName, TransactionName
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2

CURRENCY: Final = "CREDIT"

_CLOCKS: Final = {
    event_pb2.CLOCK_CHANGE_STARTED: Clock.STARTED,
    event_pb2.CLOCK_CHANGE_PAUSED: Clock.PAUSED,
    event_pb2.CLOCK_CHANGE_RESUMED: Clock.RESUMED,
    event_pb2.CLOCK_CHANGE_STOPPED: Clock.STOPPED,
    event_pb2.CLOCK_CHANGE_VOIDED: Clock.VOIDED,
}

_PHASES: Final = {
    fault_pb2.STAGE_QUEUED: Phase.QUEUED,
    fault_pb2.STAGE_PROVISIONING: Phase.PROVISIONING,
    fault_pb2.STAGE_DATA_DOWNLOAD: Phase.DATA_DOWNLOAD,
    fault_pb2.STAGE_INITIALIZATION: Phase.INITIALIZATION,
    fault_pb2.STAGE_TRAINING: Phase.TRAINING,
    fault_pb2.STAGE_SAVING: Phase.SAVING,
    fault_pb2.STAGE_UPLOAD: Phase.UPLOAD,
    fault_pb2.STAGE_EXPORTING: Phase.EXPORTING,
    fault_pb2.STAGE_DONE: Phase.DONE,
}

_ENDINGS: Final = {
    run_pb2.RUN_STATE_COMPLETED: Ending.COMPLETED,
    run_pb2.RUN_STATE_FAILED: Ending.FAILED,
    run_pb2.RUN_STATE_CANCELLED: Ending.CANCELLED,
}

# The events that affect the bill; all others only count as seen.
_KEPT: Final = frozenset({"submitted", "state_changed", "clock_changed", "ended"})


def timestamp(moment: datetime) -> Timestamp:
    """A time as protobuf."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp) -> datetime:
    """A protobuf time as datetime, in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def money(amount_micros: int) -> billing_pb2.Money:
    """An amount of credits."""
    return billing_pb2.Money(amount_micros=amount_micros, currency_code=CURRENCY)


def wallet_to_proto(wallet: Wallet) -> billing_pb2.Account:
    """A project's account."""
    return billing_pb2.Account(
        name=str(AccountName(project=wallet.project)),
        plan=wallet.plan,
        posted=money(wallet.posted_micros),
        held=money(wallet.held_micros),
        available=money(wallet.available_micros),
        create_time=timestamp(wallet.create_time),
    )


def kind_to_proto(kind: EntryKind) -> billing_pb2.EntryKind:
    """The kind of an entry."""
    match kind:
        case EntryKind.GRANT:
            return billing_pb2.ENTRY_KIND_GRANT
        case EntryKind.HOLD:
            return billing_pb2.ENTRY_KIND_HOLD
        case EntryKind.CAPTURE:
            return billing_pb2.ENTRY_KIND_CAPTURE
        case EntryKind.RELEASE:
            return billing_pb2.ENTRY_KIND_RELEASE
        case EntryKind.REFUND:
            return billing_pb2.ENTRY_KIND_REFUND
        case _:
            assert_never(kind)


def entry_to_proto(entry: Entry) -> billing_pb2.LedgerEntry:
    """An entry of the ledger."""
    message = transfer_to_proto(entry.transfer)
    project = entry.transfer.project
    message.name = str(TransactionName(project=project, transaction=entry.entry_id))
    message.post_time.FromDatetime(entry.post_time)
    return message


def transfer_to_proto(transfer: Transfer) -> billing_pb2.LedgerEntry:
    """An entry that is only computed: it has no name and no time of posting."""
    return billing_pb2.LedgerEntry(
        kind=kind_to_proto(transfer.kind),
        amount=money(transfer.amount_micros),
        debit_account=transfer.debit_account,
        credit_account=transfer.credit_account,
        run=transfer.run,
        reason=transfer.reason,
        event_time=timestamp(transfer.event_time),
        posting_key=transfer.posting_key,
        minutes=transfer.minutes,
    )


def hold_from_proto(*, run: str, project: str, quote: billing_pb2.Quote) -> Hold:
    """The terms of a hold: the highest price of a quote."""
    return Hold(
        run=run,
        project=project,
        amount_micros=quote.maximum.amount_micros,
        rate_micros_per_minute=quote.rate_per_minute.amount_micros,
        maximum_minutes=quote.maximum_minutes,
        gpu_tier=quote.gpu_tier,
    )


def receipt_to_proto(
    *,
    run: str,
    bill: Bill,
    timeline: Timeline,
    entries: list[billing_pb2.LedgerEntry],
    settled: bool,
) -> billing_pb2.Receipt:
    """The bill of a run."""
    return billing_pb2.Receipt(
        run=run,
        held=money(bill.held_micros),
        charged=money(bill.charged_micros),
        released=money(bill.released_micros),
        refunded=money(bill.refunded_micros),
        billable_minutes=bill.minutes,
        billable_millis=timeline.billable_millis,
        intervals=[_interval_to_proto(each) for each in timeline.intervals],
        entries=entries,
        settled=settled,
    )


def fact_from_event(event: event_pb2.Event) -> Fact | None:
    """The fact of an event for the bill; None for events that do not affect it."""
    kind = event.WhichOneof("payload")
    if kind not in _KEPT:
        return None
    clock, reason, void_from = None, "", None
    if kind == "clock_changed":
        change = event.clock_changed
        clock, reason = _CLOCKS.get(change.change), change.reason
        if change.HasField("void_from_time"):
            void_from = moment(change.void_from_time)
    return Fact(
        sequence=event.sequence,
        event_time=moment(event.event_time),
        attempt=event.attempt,
        phase=_phase(event),
        clock=clock,
        reason=reason,
        void_from=void_from,
        outcome=_outcome(event.ended) if kind == "ended" else None,
    )


def project_of(run: str) -> ProjectName:
    """The project of a run's name."""
    return ProjectName(project=run.split("/")[1])


def _phase(event: event_pb2.Event) -> Phase:
    if event.state == run_pb2.RUN_STATE_RETRYING:
        return Phase.RETRYING
    # An unknown stage counts as queued: only clock events make time billable.
    return _PHASES.get(event.stage, Phase.QUEUED)


def _outcome(ended: event_pb2.RunEnded) -> RunEnd:
    return RunEnd(
        ending=_ENDINGS[ended.state],
        refundable=ended.refundable,
        fault_code=ended.fault.code,
        fault_refundable=ended.fault.refundable,
    )


def _interval_to_proto(interval: Interval) -> billing_pb2.Interval:
    message = billing_pb2.Interval(
        start_time=timestamp(interval.start),
        billable=interval.billable,
        reason=interval.reason,
        attempt=interval.attempt,
    )
    if interval.end is not None:
        message.end_time.FromDatetime(interval.end)
    return message
