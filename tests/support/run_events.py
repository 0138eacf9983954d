"""Builders of event messages: a run's life as the scheduler tells it."""

from datetime import datetime, timedelta

from tests.support.money import START
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2


class RunStory:
    """Events of one run; `at` moves the time, the other methods say what happens then."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.events: list[event_pb2.Event] = []
        self._time = START
        self._attempt = 0
        self._state = run_pb2.RUN_STATE_QUEUED
        self._stage = fault_pb2.STAGE_QUEUED

    def at(self, seconds: float) -> "RunStory":
        self._time = START + timedelta(seconds=seconds)
        return self

    def submitted(self) -> "RunStory":
        return self._tell("submitted", submitted=event_pb2.RunSubmitted())

    def moves(
        self,
        state: run_pb2.RunState,
        stage: fault_pb2.Stage,
        *,
        attempt: int | None = None,
    ) -> "RunStory":
        self._state, self._stage = state, stage
        self._attempt = self._attempt if attempt is None else attempt
        return self._tell("state_changed", state_changed=event_pb2.RunStateChanged())

    def clock(
        self, change: event_pb2.ClockChange, *, void_from: datetime | None = None
    ) -> "RunStory":
        changed = event_pb2.ClockChanged(change=change)
        if void_from is not None:
            changed.void_from_time.FromDatetime(void_from)
        return self._tell("clock_changed", clock_changed=changed)

    def progresses(self) -> "RunStory":
        return self._tell("progressed", progressed=event_pb2.RunProgressed())

    def ends(
        self, state: run_pb2.RunState, *, refundable: bool = True, code: str = ""
    ) -> "RunStory":
        self._state, self._stage = state, fault_pb2.STAGE_DONE
        ended = event_pb2.RunEnded(
            state=state,
            rate_per_minute=billing_pb2.Money(amount_micros=50_000),
            refundable=refundable,
        )
        if code:
            ended.fault.code = code
            ended.fault.refundable = True
        return self._tell("ended", ended=ended)

    def trains(self, seconds: float, *, begin: float = 100) -> "RunStory":
        """Waits, is prepared, and trains for a time from second `begin`."""
        self.at(0).submitted()
        self.at(10).moves(
            run_pb2.RUN_STATE_WAITING_FOR_GPU, fault_pb2.STAGE_PROVISIONING, attempt=1
        )
        self.at(begin).moves(run_pb2.RUN_STATE_TRAINING, fault_pb2.STAGE_TRAINING)
        self.clock(event_pb2.CLOCK_CHANGE_STARTED).progresses()
        self.at(begin + seconds).progresses().clock(event_pb2.CLOCK_CHANGE_STOPPED)
        return self.moves(run_pb2.RUN_STATE_TRAINING, fault_pb2.STAGE_EXPORTING)

    def _tell(self, kind: str, **payload: object) -> "RunStory":
        sequence = len(self.events) + 1
        event = event_pb2.Event(
            event_id=f"{self.run}#{sequence}",
            schema_version=1,
            run=self.run,
            sequence=sequence,
            attempt=self._attempt,
            state=self._state,
            stage=self._stage,
            type=kind,
            **payload,  # type: ignore[arg-type]
        )
        event.event_time.FromDatetime(self._time)
        self.events.append(event)
        return self
