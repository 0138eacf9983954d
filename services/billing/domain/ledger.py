"""The double-entry ledger: credits move between accounts by transfers that are only ever appended.

A project has three accounts: `available` (free to use), `held` (reserved by runs) and `spent`
(charged). New credits come from the one platform account `platform/grants`, whose balance is minus
what was ever granted. A transfer takes its amount from one account and puts it into another, so all
balances together are always zero.

There is no account for the platform's revenue: it is the sum of the `spent` accounts, and a single
row for it would be a lock on which the charges of all projects wait for each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from lexicon.faults import Fault, FaultCode

GRANTS_ACCOUNT: Final = "platform/grants"

MICROS_PER_CREDIT: Final = 1_000_000

# The largest amount of one transfer: a billion credits. It keeps every sum far inside a signed
# 64-bit column.
MAX_AMOUNT_MICROS: Final = 10**9 * MICROS_PER_CREDIT


class AccountKind(StrEnum):
    """The role of an account."""

    AVAILABLE = "available"
    HELD = "held"
    SPENT = "spent"
    GRANTS = "grants"


class EntryKind(StrEnum):
    """The kind of a transfer."""

    GRANT = "grant"
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"
    REFUND = "refund"


# Source and target account of each kind of transfer.
ROUTES: Final[Mapping[EntryKind, tuple[AccountKind, AccountKind]]] = {
    EntryKind.GRANT: (AccountKind.GRANTS, AccountKind.AVAILABLE),
    EntryKind.HOLD: (AccountKind.AVAILABLE, AccountKind.HELD),
    EntryKind.CAPTURE: (AccountKind.HELD, AccountKind.SPENT),
    EntryKind.RELEASE: (AccountKind.HELD, AccountKind.AVAILABLE),
    EntryKind.REFUND: (AccountKind.SPENT, AccountKind.AVAILABLE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One movement of credits, before it is written; `posting_key` makes it unique forever."""

    posting_key: str
    kind: EntryKind
    project: str
    run: str
    amount_micros: int
    minutes: int
    reason: str
    event_time: datetime

    def __post_init__(self) -> None:
        assert 0 <= self.amount_micros <= MAX_AMOUNT_MICROS, self
        assert self.minutes >= 0, self

    @property
    def debit_account(self) -> str:
        """Account that the amount leaves."""
        return account_key(self.project, ROUTES[self.kind][0])

    @property
    def credit_account(self) -> str:
        """Account that the amount reaches."""
        return account_key(self.project, ROUTES[self.kind][1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A transfer as recorded in the ledger."""

    entry_id: str
    position: int
    transfer: Transfer
    post_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One side of a transfer: what an account gains, negative for what it loses."""

    account: str
    amount_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """A project's account as users see it."""

    project: str
    plan: str
    available_micros: int
    held_micros: int
    create_time: datetime

    @property
    def posted_micros(self) -> int:
        """Credits owned, before holds."""
        return self.available_micros + self.held_micros


def account_key(project: str, kind: AccountKind) -> str:
    """Returns the ledger's name of an account, for example `projects/acme/held`."""
    return GRANTS_ACCOUNT if kind is AccountKind.GRANTS else f"projects/{project}/{kind}"


def postings(transfer: Transfer) -> tuple[Posting, Posting]:
    """The two sides of a transfer; they sum to zero."""
    return (
        Posting(account=transfer.debit_account, amount_micros=-transfer.amount_micros),
        Posting(account=transfer.credit_account, amount_micros=transfer.amount_micros),
    )


def accounts_of(transfers: Iterable[Transfer]) -> tuple[str, ...]:
    """The accounts that transfers touch, sorted: the order in which they are locked."""
    return tuple(sorted({side.account for transfer in transfers for side in postings(transfer)}))


def apply(balances: Mapping[str, int], transfers: Iterable[Transfer]) -> dict[str, int]:
    """Returns the balances after transfers.

    Raises:
        Fault: BILLING_FUNDS_INSUFFICIENT when a hold asks for more than is available. Any other
            account going below zero is a bug and fails an assertion.
    """
    after = dict(balances)
    for transfer in transfers:
        for side in postings(transfer):
            after[side.account] = after.get(side.account, 0) + side.amount_micros
        left = after[transfer.debit_account]
        if left < 0 and transfer.kind is EntryKind.HOLD:
            raise _insufficient(transfer, available_micros=left + transfer.amount_micros)
        assert left >= 0 or transfer.debit_account == GRANTS_ACCOUNT, transfer
    return after


def grant(
    *, project: str, request_id: str, amount_micros: int, reason: str, event_time: datetime
) -> Transfer:
    """Credits that an operator gives to a project."""
    return Transfer(
        posting_key=f"projects/{project}/grants/{request_id}",
        kind=EntryKind.GRANT,
        project=project,
        run="",
        amount_micros=amount_micros,
        minutes=0,
        reason=reason,
        event_time=event_time,
    )


def run_transfer(
    kind: EntryKind,
    *,
    run: str,
    project: str,
    amount_micros: int,
    reason: str,
    event_time: datetime,
    minutes: int = 0,
) -> Transfer:
    """A transfer of a run: there is at most one of each kind, so run and kind are its key."""
    return Transfer(
        posting_key=f"{run}/{kind}",
        kind=kind,
        project=project,
        run=run,
        amount_micros=amount_micros,
        minutes=minutes,
        reason=reason,
        event_time=event_time,
    )


def credits_text(amount_micros: int) -> str:
    """An amount for people: `12`, `0.05`, `0.000001`."""
    whole, rest = divmod(amount_micros, MICROS_PER_CREDIT)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)


def _insufficient(transfer: Transfer, *, available_micros: int) -> Fault:
    return Fault(
        FaultCode.BILLING_FUNDS_INSUFFICIENT,
        f"The run needs {credits_text(transfer.amount_micros)} credits reserved, and "
        f"{credits_text(available_micros)} are available.",
        required_micros=transfer.amount_micros,
        available_micros=available_micros,
        project=transfer.project,
    )
