"""The four clocks of a run."""

from datetime import timedelta

import pytest

from scheduler.domain.clock import Clock, cost_micros, read, whole_minutes
from tests.support.runs import NOON


def at(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def test_a_pause_is_free() -> None:
    """A7: a thermal pause is not billable."""
    clock = Clock().open(NOON).start(NOON + at(10)).pause(NOON + at(20)).resume(NOON + at(50))
    clock = clock.stop(NOON + at(60)).close(NOON + at(60))
    assert clock.billable(NOON + at(100)) == at(20)
    assert clock.active(NOON + at(100)) == at(60)


def test_void_keeps_what_a_checkpoint_saved_and_no_more() -> None:
    """A6: repeated steps are never billable."""
    clock = Clock().open(NOON).start(NOON + at(10)).pause(NOON + at(20)).resume(NOON + at(30))
    lost = clock.void(NOON + at(90), keep_until=NOON + at(40))
    assert lost.billable(NOON + at(90)) == at(20)
    assert clock.void(NOON + at(90), keep_until=None).billable(NOON + at(90)) == at(0)


def test_what_is_settled_cannot_be_voided_by_a_later_attempt() -> None:
    clock = Clock().open(NOON).start(NOON).void(NOON + at(60), keep_until=NOON + at(30))
    again = clock.close(NOON + at(60)).open(NOON + at(70)).start(NOON + at(80))
    assert again.void(NOON + at(99), keep_until=None).billable(NOON + at(99)) == at(30)


def test_a_stopped_clock_can_still_be_voided_with_its_attempt() -> None:
    clock = Clock().open(NOON).start(NOON).stop(NOON + at(50))
    assert clock.void(NOON + at(60), keep_until=None).billable(NOON + at(60)) == at(0)


def test_the_clock_says_when_it_reaches_an_amount() -> None:
    clock = Clock().open(NOON).start(NOON).pause(NOON + at(20)).resume(NOON + at(50))
    assert clock.reaches(at(30)) == NOON + at(60)
    assert clock.pause(NOON + at(70)).reaches(at(30)) is None


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(0, 0), (59, 0), (60, 1), (119, 1), (120, 2), (479, 7)]
)
def test_minutes_are_rounded_down(seconds: float, minutes: int) -> None:
    """A1 and 001-31: 0:59 -> 0, 1:00 -> 1, 7:59 -> 7."""
    assert whole_minutes(at(seconds)) == minutes


def test_cost_never_exceeds_the_hold() -> None:
    assert cost_micros(at(600), rate_micros_per_minute=10, hold_micros=1000) == 100
    assert cost_micros(at(600), rate_micros_per_minute=10, hold_micros=70) == 70


def test_an_ended_run_is_read_at_its_end() -> None:
    clock = Clock().open(NOON).start(NOON + at(1)).stop(NOON + at(5)).close(NOON + at(6))
    reading = read(clock, submit_time=NOON, end_time=NOON + at(8), now=NOON + at(500))
    assert (reading.wall, reading.active, reading.billable) == (at(8), at(6), at(4))
    assert reading.wasted == at(2)
