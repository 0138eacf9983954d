"""The timeline of a run: which of its time is charged."""

from datetime import timedelta

import pytest

from billing.domain.timeline import Clock, Phase, Timeline, timeline
from tests.support.money import CANCELLED, COMPLETED, START, Story, a_run, a_training_run, failed


def seconds(micros: int) -> float:
    return micros / 1_000_000


def told(story: Story) -> list[tuple[float, bool, str, int]]:
    """Length, whether billable, reason and attempt of each interval."""
    return [
        ((each.end - each.start).total_seconds(), each.billable, each.reason, each.attempt)
        for each in timeline(story.facts).intervals
        if each.end
    ]


def billable(story: Story) -> float:
    return seconds(timeline(story.facts).billable_micros)


def test_nothing_happened_is_an_empty_timeline() -> None:
    assert timeline([]) == Timeline(intervals=(), wall_micros=0, active_micros=0, billable_micros=0)


def test_only_the_time_between_first_step_and_stored_adapter_is_billable() -> None:
    """A3, A4, 001-02, 001-03, 001-04: waiting and loading are free, the rest counts."""
    story = a_training_run(start=100).at(400).phase_is(Phase.SAVING).at(410).phase_is(Phase.UPLOAD)
    story = story.at(430).clock(Clock.STOPPED).phase_is(Phase.EXPORTING).at(500).ends(COMPLETED)
    assert told(story) == [
        (10, False, "queued", 0),
        (10, False, "provisioning", 1),
        (10, False, "data download", 1),
        (70, False, "initialization", 1),
        (300, True, "training", 1),
        (10, True, "saving", 1),
        (20, True, "upload", 1),
        (70, False, "exporting", 1),
    ]
    line = timeline(story.facts)
    assert (seconds(line.wall_micros), seconds(line.active_micros)) == (500, 420)
    assert seconds(line.billable_micros) == 330


def test_a_run_cancelled_in_the_queue_has_no_billable_time() -> None:
    """001-02."""
    line = timeline(a_run().at(3600).ends(CANCELLED).facts)
    assert (line.billable_micros, line.active_micros) == (0, 0)
    assert seconds(line.wall_micros) == 3600


def test_a_thermal_pause_is_not_billable_and_names_itself() -> None:
    """A7."""
    story = a_training_run(start=0).at(60).clock(Clock.PAUSED, reason="Waiting for GPU to cool…")
    story = story.at(200).clock(Clock.RESUMED).at(260).ends(COMPLETED)
    assert billable(story) == 120
    assert (140, False, "Waiting for GPU to cool…", 1) in told(story)
    assert seconds(timeline(story.facts).active_micros) == 260


def test_a_lost_attempt_without_a_checkpoint_is_void_from_its_start() -> None:
    """A6."""
    story = a_training_run(start=100).at(300).clock(Clock.VOIDED).phase_is(Phase.RETRYING)
    story = story.at(330).phase_is(Phase.PROVISIONING, attempt=2)
    story = story.at(350).phase_is(Phase.TRAINING).clock(Clock.STARTED)
    story = story.at(450).clock(Clock.STOPPED).ends(COMPLETED)
    assert billable(story) == 100
    assert (200, False, "lost with attempt 1", 1) in told(story)
    assert (30, False, "retrying", 1) in told(story)
    assert (100, True, "training", 2) in told(story)


def test_time_up_to_the_checkpoint_from_which_the_next_attempt_goes_on_counts() -> None:
    """A6: the steps after the checkpoint are done twice and charged once."""
    story = a_training_run(start=100).at(300).clock(Clock.VOIDED, void_from=250)
    story = story.phase_is(Phase.RETRYING).at(350).phase_is(Phase.TRAINING, attempt=2)
    story = story.clock(Clock.STARTED).at(450).clock(Clock.STOPPED).ends(COMPLETED)
    assert billable(story) == 150 + 100
    assert (50, False, "lost with attempt 1", 1) in told(story)


def test_a_void_reaches_back_into_an_earlier_attempt() -> None:
    """A6: the newest checkpoint turned out unusable, so an older one is where it goes on."""
    story = a_training_run(start=100).at(200).clock(Clock.VOIDED, void_from=180)
    story = story.phase_is(Phase.RETRYING).at(300).phase_is(Phase.TRAINING, attempt=2)
    story = story.clock(Clock.STARTED).at(400).clock(Clock.VOIDED, void_from=120)
    assert billable(story.ends(failed())) == 20


def test_a_pause_within_a_lost_attempt_is_part_of_the_loss() -> None:
    story = a_training_run(start=100).at(150).clock(Clock.PAUSED).at(160).clock(Clock.RESUMED)
    assert billable(story.at(200).clock(Clock.VOIDED).ends(failed())) == 0


def test_another_attempt_that_starts_unannounced_voids_the_one_before() -> None:
    """A6: in doubt the reading that charges less."""
    story = a_training_run(start=100).at(300).phase_is(Phase.TRAINING, attempt=2)
    story = story.clock(Clock.STARTED).at(350).clock(Clock.STOPPED).ends(COMPLETED)
    assert billable(story) == 50


def test_stray_clock_events_charge_nothing() -> None:
    story = (
        a_run().at(5).clock(Clock.RESUMED).at(10).clock(Clock.STOPPED).at(20).clock(Clock.PAUSED)
    )
    story = story.at(30).clock(Clock.VOIDED).at(40).clock(Clock.RESUMED)
    assert billable(story.at(500).ends(COMPLETED)) == 0


def test_a_start_repeated_within_an_attempt_changes_nothing() -> None:
    story = a_training_run(start=100).at(150).clock(Clock.STARTED)
    assert billable(story.at(200).clock(Clock.STOPPED).ends(COMPLETED)) == 100


def test_nothing_counts_after_the_end() -> None:
    story = a_training_run(start=0).at(60).ends(COMPLETED)
    story = story.at(70).clock(Clock.STARTED).at(700).clock(Clock.STOPPED)
    assert billable(story) == 60


def test_the_end_of_a_run_stops_a_clock_that_still_runs() -> None:
    assert billable(a_training_run(start=10).at(70).ends(CANCELLED)) == 60


def test_a_stop_reported_before_its_start_makes_no_negative_time() -> None:
    story = a_training_run(start=100).at(90).clock(Clock.STOPPED).at(120).ends(COMPLETED)
    assert billable(story) == 0


def test_facts_in_any_order_and_twice_give_the_same_timeline() -> None:
    story = a_training_run(start=100).at(300).clock(Clock.STOPPED).ends(COMPLETED)
    assert timeline([*reversed(story.facts), *story.facts]) == timeline(story.facts)


def test_a_run_under_way_is_measured_until_now_and_its_last_interval_is_open() -> None:
    story = a_training_run(start=100)
    line = timeline(story.facts, now=START + timedelta(seconds=190))
    assert seconds(line.billable_micros) == 90
    assert line.intervals[-1].end is None
    assert line.intervals[-1].billable


@pytest.mark.parametrize(
    ("trained", "minutes"), [(59, 0), (59.999999, 0), (60, 1), (179, 2), (479, 7), (480, 8)]
)
def test_billable_time_is_rounded_down_to_whole_minutes(trained: float, minutes: int) -> None:
    """A1, 001-31: 0:59 -> 0, 1:00 -> 1, 7:59 -> 7."""
    story = a_training_run(start=100).at(100 + trained).clock(Clock.STOPPED).ends(CANCELLED)
    assert timeline(story.facts).billable_minutes == minutes


def test_short_intervals_are_summed_before_they_are_rounded() -> None:
    """A1: per run, not per interval."""
    story = a_training_run(start=0)
    for minute in range(4):
        story = story.at(minute * 100 + 40).clock(Clock.PAUSED)
        story = story.at(minute * 100 + 100).clock(Clock.RESUMED)
    assert timeline(story.ends(COMPLETED).facts).billable_minutes == 2
