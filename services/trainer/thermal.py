"""Keeps an eye on the GPU's temperature while a run trains."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import assert_never

from chassis.leasing import LeaseSession
from lexicon.faults import Fault, FaultCode
from trainer import wire
from trainer.child import Child
from trainer.domain.temperature import COOLING_TEXT, Action, Limits, Thermostat
from trainer.pipe import Pause, Resume
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_service_pb2

READ_EVERY_SECONDS = 5.0
# Five minutes: a sensor that is away for so long says that the GPU is.
UNREADABLE_MAX = 60
Reading = Callable[[], float | None]


def limits(training: spec_pb2.TrainingConfig) -> Limits:
    """The limits of a run; what is left out is A14's."""
    given, defaults = training.temperature, Limits()
    return Limits(
        warn_celsius=_or(given.warn_celsius, defaults.warn_celsius),
        pause_celsius=_or(given.pause_celsius, defaults.pause_celsius),
        abort_celsius=_or(given.abort_celsius, defaults.abort_celsius),
    )


class ThermalGuard:
    """Warns, pauses and lets go on; ends the child when the GPU gets too hot."""

    def __init__(
        self, session: LeaseSession, child: Child, thermostat: Thermostat, read: Reading
    ) -> None:
        self._session = session
        self._child = child
        self._thermostat = thermostat
        self._read = read
        self._unreadable_count = 0
        self.fault: Fault | None = None

    async def run(self) -> None:
        """Read until cancelled, or until the GPU is too hot."""
        while self.fault is None:
            await self.run_once()
            await asyncio.sleep(READ_EVERY_SECONDS)

    async def run_once(self) -> Action:
        """Read once and do what has to be done; what was done."""
        celsius = await asyncio.to_thread(self._read)
        self._session.temperature_celsius = celsius
        if celsius is None:
            return await self._unreadable()
        self._unreadable_count = 0
        self._thermostat, action = self._thermostat.after_reading(celsius)
        match action:
            case Action.NONE:
                pass
            case Action.WARN:
                self._warn(f"The GPU has {celsius:.0f} °C")
            case Action.PAUSE:
                await self._child.send(Pause())
                self._warn(COOLING_TEXT)
                self._clock(paused=True)
            case Action.RESUME:
                await self._child.send(Resume())
                self._clock(paused=False)
            case Action.ABORT:
                text = f"The GPU has {celsius:.0f} °C; training was ended to protect it"
                await self._end(
                    Fault(FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL, text, celsius=celsius)
                )
            case _:
                assert_never(action)
        return action

    async def _unreadable(self) -> Action:
        """What to do without a reading: a run that waits for one must not wait for ever."""
        self._unreadable_count += 1
        if not self._thermostat.paused or self._unreadable_count < UNREADABLE_MAX:
            return Action.NONE
        text = "The GPU was too hot, and its temperature cannot be read any more"
        await self._end(Fault(FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL, text))
        return Action.ABORT

    async def _end(self, fault: Fault) -> None:
        self.fault = fault
        # One that cannot be ended is noticed by whoever listens to it.
        with suppress(Fault):
            await self._child.kill()

    def training_began(self) -> None:
        """Pause the clock, which the first step has just started, if training waits for the GPU.

        A pause that came before it had no clock to stop, and cooling is free.
        """
        if self._thermostat.paused:
            self._clock(paused=True)

    def _warn(self, text: str) -> None:
        warning = run_pb2.RunWarning(
            code=FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL.value, message=text
        )
        self._session.report(work_service_pb2.TaskReport(warning=warning))

    def _clock(self, *, paused: bool) -> None:
        self._session.report(wire.clock_report(paused=paused, reason=COOLING_TEXT))


def _or(given: float, default: float) -> float:
    return given if given > 0 else default
