"""Rows of the ledger, the bills and the inbox: the only place of billing that sees SQL.

A `Unit` is one transaction. It locks the rows that it reads for a decision, always in the order
inbox, bill, accounts by name, so that units cannot deadlock.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import asyncpg

from billing.domain.ledger import (
    Entry,
    EntryKind,
    Transfer,
    Wallet,
    accounts_of,
    apply,
)
from billing.domain.settlement import Bill, Hold
from billing.domain.timeline import Clock, Ending, Fact, Phase, RunEnd
from chassis import idempotency
from chassis.postgres import Connection, Pool, Queries

_SQL: Final = Queries.load("billing")

# Positions begin at 1 and grow; a first page begins below the largest possible one.
NEWEST: Final = (1 << 63) - 1


class BillState(StrEnum):
    """State of a bill: OPEN -> SETTLED by the run's end, or RELEASED when it never began."""

    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRow:
    """A run's bill with the terms of its hold."""

    hold: Hold
    state: BillState


class TakenIn(StrEnum):
    """How the inbox classifies an event."""

    REPEATED = "repeated"
    NEW = "new"
    COMPLETING = "completing"


class Store:
    """The database of billing."""

    def __init__(self, pool: Pool, *, new_id: Callable[[datetime], str], default_plan: str) -> None:
        self._pool = pool
        self._new_id = new_id
        self._default_plan = default_plan

    @asynccontextmanager
    async def unit(self) -> AsyncIterator["Unit"]:
        """One transaction; it commits when the block ends without an exception."""
        async with self._pool.acquire() as connection, connection.transaction():
            yield Unit(connection, new_id=self._new_id, default_plan=self._default_plan)


class Unit:
    """What can be done within one transaction."""

    def __init__(
        self,
        connection: Connection,
        *,
        new_id: Callable[[datetime], str],
        default_plan: str,
    ) -> None:
        self.connection = connection
        self.answers = idempotency.Answers(connection)
        self._new_id = new_id
        self._default_plan = default_plan

    async def now(self) -> datetime:
        """The database's clock."""
        now: datetime = await self.connection.fetchval(_SQL["now"])
        return now

    async def wallet(self, project: str) -> Wallet:
        """The account of a project, opened empty when it is seen for the first time."""
        row = await self.connection.fetchrow(_SQL["wallet"], project)
        if row is None:
            await self.connection.execute(_SQL["open_project"], project, self._default_plan)
            await self.connection.execute(_SQL["open_accounts"], f"projects/{project}")
            row = await self.connection.fetchrow(_SQL["wallet"], project)
        assert row is not None
        return Wallet(
            project=row["project"],
            plan=row["plan"],
            available_micros=row["available_micros"],
            held_micros=row["held_micros"],
            create_time=row["create_time"],
        )

    async def set_plan(self, project: str, plan: str) -> None:
        """Puts a project on a plan."""
        await self.connection.execute(_SQL["set_plan"], project, plan)

    async def post(self, transfers: Sequence[Transfer]) -> tuple[Entry, ...]:
        """Writes transfers and moves the balances of their accounts.

        Raises:
            Fault: BILLING_FUNDS_INSUFFICIENT.
        """
        rows = await self.connection.fetch(_SQL["lock_accounts"], list(accounts_of(transfers)))
        before = {row["account"]: row["balance_micros"] for row in rows}
        after = apply(before, transfers)
        now = await self.now()
        entries = [
            _entry(
                await self.connection.fetchrow(
                    _SQL["insert_entry"], *_columns(self._new_id(now), each)
                )
            )
            for each in transfers
        ]
        for account in sorted(after):
            if after[account] != before[account]:
                await self.connection.execute(_SQL["set_balance"], account, after[account])
        return tuple(entries)

    async def entry(self, posting_key: str) -> Entry | None:
        """The entry of a posting key."""
        row = await self.connection.fetchrow(_SQL["entry_by_key"], posting_key)
        return None if row is None else _entry(row)

    async def entries_of_run(self, run: str) -> tuple[Entry, ...]:
        """The entries of a run in posting order."""
        return tuple(map(_entry, await self.connection.fetch(_SQL["entries_of_run"], run)))

    async def list_entries(
        self, project: str, *, run: str, before_position: int, count: int
    ) -> tuple[Entry, ...]:
        """Entries of a project below a position, newest first; `run` empty means all."""
        rows = await self.connection.fetch(
            _SQL["list_entries"], project, before_position, run, count
        )
        return tuple(map(_entry, rows))

    async def open_bill(self, hold: Hold) -> bool:
        """Writes the terms of a hold; False when the run has a bill already."""
        row = await self.connection.fetchrow(
            _SQL["insert_bill"],
            hold.run,
            hold.project,
            hold.amount_micros,
            hold.rate_micros_per_minute,
            hold.maximum_minutes,
            hold.gpu_tier,
        )
        return row is not None

    async def bar_bill(self, *, run: str, project: str) -> bool:
        """Records that a run must not be held for any more; False when it has a bill already."""
        row = await self.connection.fetchrow(_SQL["insert_released_bill"], run, project)
        return row is not None

    async def bill(self, run: str, *, lock: bool = False) -> BillRow | None:
        """The bill of a run."""
        row = await self.connection.fetchrow(_SQL["lock_bill" if lock else "bill"], run)
        if row is None:
            return None
        hold = Hold(
            run=row["run"],
            project=row["project"],
            amount_micros=row["held_micros"],
            rate_micros_per_minute=row["rate_micros_per_minute"],
            maximum_minutes=row["maximum_minutes"],
            gpu_tier=row["gpu_tier"],
        )
        return BillRow(hold=hold, state=BillState(row["state"]))

    async def close_bill(self, run: str, *, state: BillState, bill: Bill) -> None:
        """Writes the final sums of an open bill."""
        await self.connection.execute(
            _SQL["close_bill"],
            run,
            str(state),
            bill.charged_micros,
            bill.released_micros,
            bill.refunded_micros,
            bill.minutes,
        )

    async def take_in(self, run: str, *, sequence: int, is_last: bool) -> TakenIn:
        """Marks an event as seen and says whether the run's events are now complete and ended."""
        await self.connection.execute(_SQL["open_inbox"], run)
        complete = await self.connection.fetchval(
            _SQL["take_in"], run, sequence, sequence if is_last else None
        )
        if complete is None:
            return TakenIn.REPEATED
        return TakenIn.COMPLETING if complete else TakenIn.NEW

    async def keep_fact(self, run: str, fact: Fact) -> None:
        """Stores an event that affects the bill."""
        outcome = fact.outcome
        await self.connection.execute(
            _SQL["insert_fact"],
            run,
            fact.sequence,
            fact.event_time,
            fact.attempt,
            str(fact.phase),
            None if fact.clock is None else str(fact.clock),
            fact.reason,
            fact.void_from,
            None if outcome is None else str(outcome.ending),
            None if outcome is None else outcome.refundable,
            None if outcome is None else outcome.fault_code,
            None if outcome is None else outcome.fault_refundable,
        )

    async def facts(self, run: str) -> tuple[Fact, ...]:
        """The kept events of a run by sequence."""
        return tuple(map(_fact, await self.connection.fetch(_SQL["facts"], run)))

    async def cursor(self, reader: str) -> str:
        """How far a reader has come in the scheduler's event log; empty at the beginning."""
        token: str | None = await self.connection.fetchval(_SQL["cursor"], reader)
        return token or ""

    async def save_cursor(self, reader: str, page_token: str) -> None:
        """Records how far a reader has come."""
        await self.connection.execute(_SQL["save_cursor"], reader, page_token)


def _columns(entry_id: str, transfer: Transfer) -> tuple[object, ...]:
    return (
        entry_id,
        transfer.posting_key,
        str(transfer.kind),
        transfer.project,
        transfer.run,
        transfer.amount_micros,
        transfer.debit_account,
        transfer.credit_account,
        transfer.minutes,
        transfer.reason,
        transfer.event_time,
    )


def _entry(row: asyncpg.Record | None) -> Entry:
    assert row is not None
    transfer = Transfer(
        posting_key=row["posting_key"],
        kind=EntryKind(row["kind"]),
        project=row["project"],
        run=row["run"],
        amount_micros=row["amount_micros"],
        minutes=row["minutes"],
        reason=row["reason"],
        event_time=row["event_time"],
    )
    return Entry(
        entry_id=row["entry_id"],
        position=row["position"],
        transfer=transfer,
        post_time=row["post_time"],
    )


def _fact(row: asyncpg.Record) -> Fact:
    outcome = None
    if row["ending"] is not None:
        outcome = RunEnd(
            ending=Ending(row["ending"]),
            refundable=row["refundable"],
            fault_code=row["fault_code"],
            fault_refundable=row["fault_refundable"],
        )
    return Fact(
        sequence=row["sequence"],
        event_time=row["event_time"],
        attempt=row["attempt"],
        phase=Phase(row["phase"]),
        clock=None if row["clock"] is None else Clock(row["clock"]),
        reason=row["reason"],
        void_from=row["void_from"],
        outcome=outcome,
    )
