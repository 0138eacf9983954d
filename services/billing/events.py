"""Consume the events that change a run's bill.

One transaction marks an event as seen, stores it, and settles the run if it is complete. Events may
be delivered repeatedly and in any order, by NATS or by catch-up from the scheduler's log: each one
counts once, and a run is settled exactly when all of its events have arrived.
"""

from typing import Final

from billing.domain.settlement import bill_of, settle
from billing.domain.timeline import outcome_of, timeline
from billing.store import BillState, Store, TakenIn, Unit
from billing.wire import fact_from_event
from chassis import telemetry
from lexicon.names import RunName
from tunesmith.api.event.v1 import event_pb2

STREAM: Final = "TUNESMITH_RUN"
DURABLE: Final = "billing"
SUBJECTS: Final = ("tunesmith.run.v1.>",)
READER: Final = "scheduler-events"

log = telemetry.logger(__name__)


class RunEvents:
    """Handles the events of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def handle(self, event: event_pb2.Event) -> None:
        """Handles one event; handling it again changes nothing.

        Raises:
            Fault: INPUT_NAME_INVALID for an event of no run.
        """
        if event.WhichOneof("payload") == "export_changed":
            # An export of a stored adapter belongs to no run's bill: it costs nothing.
            return
        run = str(RunName.parse(event.run))
        fact = fact_from_event(event)
        is_last = fact is not None and fact.outcome is not None
        async with self._store.unit() as unit:
            taken = await unit.take_in(run, sequence=event.sequence, is_last=is_last)
            if taken is TakenIn.REPEATED:
                return
            if fact is not None:
                await unit.keep_fact(run, fact)
            if taken is TakenIn.COMPLETING:
                await _settle(unit, run)

    async def load_cursor(self) -> str:
        """How far the scheduler's event log was read."""
        async with self._store.unit() as unit:
            return await unit.cursor(READER)

    async def save_cursor(self, page_token: str) -> None:
        """Records how far the scheduler's event log was read."""
        async with self._store.unit() as unit:
            await unit.save_cursor(READER, page_token)


async def _settle(unit: Unit, run: str) -> None:
    """Ends the bill of a run whose events are complete."""
    row = await unit.bill(run, lock=True)
    if row is None or row.state is not BillState.OPEN:
        # Without a reservation nothing can be charged: log it for operators, keep the events.
        log.error("run ended without an open hold", run=run, bill=row and str(row.state))
        return
    facts = await unit.facts(run)
    end = outcome_of(facts)
    assert end is not None, run
    outcome, event_time = end
    entries = settle(row.hold, timeline(facts), outcome, event_time=event_time)
    posted = await unit.post(entries)
    bill = bill_of(entries)
    await unit.close_bill(run, state=BillState.SETTLED, bill=bill)
    log.info(
        "run settled",
        run=run,
        ending=str(outcome.ending),
        minutes=bill.minutes,
        charged_micros=bill.charged_micros,
        refunded_micros=bill.refunded_micros,
        entries=len(posted),
    )
