"""The thermostat: one warning, one pause, one resume, and an end when it gets dangerous."""

from trainer.domain.temperature import Action, Limits, Thermostat


def actions(*readings: float, limits: Limits | None = None) -> list[Action]:
    thermostat, taken = Thermostat(limits=limits or Limits()), []
    for celsius in readings:
        thermostat, action = thermostat.after_reading(celsius)
        taken.append(action)
    return taken


def test_cool_gpu_needs_nothing() -> None:
    assert actions(40, 60, 79.9) == [Action.NONE] * 3


def test_warning_comes_once_until_it_has_cooled() -> None:
    """A14"""
    assert actions(81, 85, 70, 82) == [Action.WARN, Action.NONE, Action.NONE, Action.WARN]


def test_pause_ends_by_itself_when_it_is_safe() -> None:
    """002-14, 002-15"""
    assert actions(91, 92, 85, 79) == [Action.PAUSE, Action.NONE, Action.NONE, Action.RESUME]


def test_abort_wins_in_any_state() -> None:
    """A14"""
    assert actions(95) == [Action.ABORT]
    assert actions(91, 95) == [Action.PAUSE, Action.ABORT]


def test_limits_are_configurable() -> None:
    """002-15"""
    model_cache = Limits(warn_celsius=40, pause_celsius=50, abort_celsius=60)
    assert actions(45, 55, 39, limits=model_cache) == [Action.WARN, Action.PAUSE, Action.RESUME]
