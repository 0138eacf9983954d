"""When the leftovers of a run are swept for the last time, and which checkpoints go early."""

from datetime import UTC, datetime

import pytest

from scheduler.domain.decision import decide
from scheduler.domain.leftovers import Superseded, Sweep, is_last, surplus
from scheduler.domain.signals import CheckpointReported, Heartbeat, Report
from tests.support.runs import LEASE, Story

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sweep_count", "removed_count", "expected"),
    [(0, 0, False), (0, 5, False), (1, 0, True), (1, 2, False), (7, 0, True)],
)
def test_the_last_sweep_is_a_later_one_that_finds_nothing(
    sweep_count: int, removed_count: int, expected: bool
) -> None:
    sweep = Sweep(run="r", ended=True, adapter=b"", sweep_count=sweep_count, due_time=NOON)
    assert is_last(sweep, removed_count=removed_count) is expected


@pytest.mark.parametrize(("keep_count", "gone"), [(0, [3, 2, 1]), (1, [2, 1]), (3, []), (9, [])])
def test_the_oldest_superseded_checkpoints_go(keep_count: int, gone: list[int]) -> None:
    points = [Superseded(position=number, files=b"") for number in (3, 2, 1)]
    assert [each.position for each in surplus(points, keep_count=keep_count)] == gone


def test_each_newer_checkpoint_supersedes_the_one_before() -> None:
    """Also several in one heartbeat."""
    story = Story().training().checkpoint(10)
    assert story.decisions[-1].superseded == ()
    reports = tuple(
        Report(number=number, age=LEASE * 0, body=CheckpointReported(step=number * 10, files=b""))
        for number in (3, 4, 5)
    )
    beat = Heartbeat(fencing_epoch=story.run.fencing_epoch, lease=LEASE, reports=reports)
    told = decide(story.run, beat, story.now)
    assert [point.step for point in told.superseded] == [10, 30, 40]


def test_a_checkpoint_that_an_attempt_could_not_use_is_superseded() -> None:
    story = Story().training().checkpoint(10).lost().after(seconds=60).leased().began(from_step=0)
    assert story.run.checkpoint is None
    assert [point.step for point in story.decisions[-1].superseded] == [10]
