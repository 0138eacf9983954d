"""When a hot GPU warns, pauses and aborts; the reading comes in, the decision goes out."""

import enum
from dataclasses import dataclass, replace

# The message of 002-14, ellipsis as printed.
COOLING_TEXT = "Waiting for GPU to cool…"


class Action(enum.StrEnum):
    """What to do after a reading."""

    NONE = "none"
    WARN = "warn"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Temperatures in degrees Celsius. Defaults are those of ruling A14."""

    warn_celsius: float = 80.0
    pause_celsius: float = 90.0
    abort_celsius: float = 95.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermostat:
    """Remembers what was done, so that each thing is done once."""

    limits: Limits
    paused: bool = False
    warned: bool = False

    def after_reading(self, celsius: float) -> "tuple[Thermostat, Action]":
        """The next state and what to do now.

        A pause ends when the temperature is below the warning limit again, not right below the
        pause limit: otherwise training would stutter around it.
        """
        if celsius >= self.limits.abort_celsius:
            return self, Action.ABORT
        if self.paused:
            if celsius < self.limits.warn_celsius:
                return replace(self, paused=False, warned=False), Action.RESUME
            return self, Action.NONE
        if celsius >= self.limits.pause_celsius:
            return replace(self, paused=True, warned=True), Action.PAUSE
        if celsius >= self.limits.warn_celsius:
            return replace(self, warned=True), Action.NONE if self.warned else Action.WARN
        return replace(self, warned=False), Action.NONE
