"""What signals do to a run."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexicon.faults import TABLE, Category, Fault, FaultCode, Stage
from scheduler.domain.activity import NEWS_PERCENT, Activity, is_news
from scheduler.domain.events import (
    ActivityChanged,
    ArtifactStored,
    ClockChanged,
    Ended,
    Progressed,
    SamplesRecorded,
    StateChanged,
    Warned,
)
from scheduler.domain.failures import final
from scheduler.domain.limits import FINISH_GRACE
from scheduler.domain.run import FinishCause, State
from scheduler.domain.signals import Heartbeat, Report, StageReached, TrainingBegan
from scheduler.domain.tasks import TaskState
from tests.support.runs import LEASE, NOON, TERMS, Story


def messages(story: Story) -> list[str]:
    return [body.message for body in story.told(Warned) if isinstance(body, Warned)]


def finishes(story: Story) -> list[FinishCause]:
    return [story.run.finish.cause] if story.run.finish else []


def last(story: Story) -> Ended:
    body = story.events[-1].body
    assert isinstance(body, Ended)
    return body


def test_the_common_path_has_its_states_in_order() -> None:
    """001-09: Queued, Waiting for GPU, Training, Completed."""
    story = Story().leased().stage(Stage.DATA_DOWNLOAD).began().trained().leased().exported()
    states = list(dict.fromkeys(event.state for event in story.events))
    assert states == [State.QUEUED, State.WAITING_FOR_GPU, State.TRAINING, State.COMPLETED]
    assert story.clock_changes() == ["STARTED", "STOPPED"]


def test_the_clock_starts_with_the_first_step_and_stops_with_the_stored_adapter() -> None:
    """A3, A4, 001-04: loading and the export are free."""
    story = Story().after(minutes=5).leased().after(minutes=3).began()
    story.after(minutes=4).trained().after(minutes=9).leased().after(minutes=9).exported()
    assert last(story).reading.billable == timedelta(minutes=4)
    assert last(story).reading.active == timedelta(minutes=3 + 4 + 9)
    assert last(story).reading.wall == timedelta(minutes=5 + 3 + 4 + 18)


def test_samples_of_a_checkpoint_stand_on_the_run_until_newer_ones_come() -> None:
    """001-18: always those of one moment; they are told, and they leave the clock alone."""
    story = Story().training().sampled(b"early").sampled(b"late")
    assert story.run.samples == b"late"
    assert [
        body.samples for body in story.told(SamplesRecorded) if isinstance(body, SamplesRecorded)
    ] == [b"early", b"late"]
    assert story.clock_changes() == ["STARTED"]


def test_what_a_node_does_is_told_in_steps_and_ends_with_its_stage() -> None:
    """Some twenty events of each activity, however often it is reported."""
    story = Story().leased().stage(Stage.DATA_DOWNLOAD)
    for thousandth in range(1001):
        story.acting("downloading the base model", thousandth / 10)
    told = [body for body in story.told(ActivityChanged) if isinstance(body, ActivityChanged)]
    percents = [body.activity.percent for body in told]
    assert percents == [5.0 * step for step in range(21)]
    assert story.run.activity == told[-1].activity
    assert story.clock_changes() == []
    assert story.stage(Stage.INITIALIZATION).run.activity is None


def test_what_a_node_does_is_gone_with_its_lease_and_its_first_figures() -> None:
    story = Story().leased().acting("loading the base model")
    assert story.run.activity is not None
    assert story.began().run.activity is None
    assert story.acting("a pause").step(1).run.activity is None
    exporting = story.trained().leased(node="nodes/e1").acting("merging", 40.0)
    assert exporting.run.activity is not None
    assert exporting.failed(FaultCode.EXPORT_DISK_FULL).run.activity is None


@given(
    reports=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.none() | st.floats(0, 100)), max_size=60
    )
)
def test_what_was_told_last_is_never_far_from_what_was_reported(
    reports: list[tuple[str, float | None]],
) -> None:
    told = None
    for text, percent in reports:
        reported = Activity(text=text, percent=percent)
        if is_news(told, reported):
            told = reported
        assert told is not None
        assert told.text == text
        assert (told.percent is None) == (percent is None)
        if told.percent is not None and percent is not None:
            assert 0 <= percent - told.percent < NEWS_PERCENT
            assert percent < 100 or told.percent == 100


def test_samples_before_training_are_not_taken() -> None:
    assert Story().leased().sampled(b"too early").run.samples == b""


def test_queued_and_waiting_cost_nothing() -> None:
    """001-02 and 001-03."""
    story = Story().after(minutes=50).leased().after(minutes=50).cancelled()
    assert story.clock_changes() == []
    assert last(story).reading.billable == timedelta()


def test_the_first_figures_are_told_at_once_and_then_within_five_seconds() -> None:
    """001-11 and 001-16."""
    story = Story().training().step(1)
    assert len(story.told(Progressed)) == 1
    for _ in range(200):
        story.after(seconds=0.5).ticked()
    times = [event.time for event in story.events if isinstance(event.body, Progressed)]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert max(gaps) <= timedelta(seconds=5)
    assert min(gaps) >= timedelta(seconds=1)
    assert min(gaps[-5:]) >= timedelta(seconds=4)


def test_an_attempt_shows_no_figures_of_the_one_before() -> None:
    story = Story().training().step(97).lost().training()
    assert story.run.metrics is None
    story.after(seconds=0.5).step(60)
    told = story.told(Progressed)[-1]
    assert isinstance(told, Progressed)
    assert told.metrics is not None
    assert told.metrics.step == 60


def test_a_checkpoint_that_was_not_used_makes_its_time_free() -> None:
    """A6: an attempt that begins before the checkpoint repeats what was done up to it."""
    story = Story().training().after(minutes=3).checkpoint(10).after(minutes=1).lost()
    assert story.run.clock.billable(story.now) == timedelta(minutes=3)
    story.leased().began(from_step=0).after(minutes=2)
    assert story.run.clock.billable(story.now) == timedelta(minutes=2)
    assert story.run.checkpoint is None
    assert story.clock_changes() == ["STARTED", "VOIDED", "VOIDED", "STARTED"]
    assert story.run.lease is not None
    assert story.run.lease.resumed_from_step == 0


@pytest.mark.parametrize("losses", [1, 2])
def test_one_or_two_lost_nodes_are_recovered_from(losses: int) -> None:
    """000-28 and A13: two retries; 001-07: nothing for the user to do."""
    story = Story()
    for _ in range(losses):
        story.training().lost()
        assert story.is_in(State.RETRYING)
    story.training()
    assert story.is_in(State.TRAINING)
    story.trained().leased().exported()
    assert story.is_in(State.COMPLETED)


def test_a_third_lost_node_fails_the_run_and_is_refunded() -> None:
    """000-28, 000-29, A13."""
    story = Story().training().lost().training().lost().training().lost()
    assert story.is_in(State.FAILED)
    fault = last(story).fault
    assert fault is not None
    assert fault.code is FaultCode.RUNTIME_WORKER_LOST
    assert TABLE[fault.code].category is Category.GPU_NODE_LOST
    assert last(story).refundable
    assert last(story).reading.billable == timedelta()


def test_a_lost_node_is_told_in_these_words() -> None:
    """000-27."""
    story = Story().training().lost()
    assert messages(story) == ["Connection to GPU node lost", "Retrying after transient failure"]
    lost = story.run.task.newest
    assert lost is not None
    assert lost.fault is not None
    assert lost.fault.message == "Connection to GPU node lost"


def test_a_lost_attempt_is_charged_up_to_its_last_checkpoint() -> None:
    """A6: the time after it is repeated and never billable."""
    story = Story().training().after(minutes=3).checkpoint(10).after(minutes=2).lost()
    voided = story.told(ClockChanged)[-1]
    assert isinstance(voided, ClockChanged)
    assert voided.void_from == NOON + timedelta(minutes=3)
    story.leased()
    assert story.run.lease is not None
    assert story.run.lease.resumed_from_step == 10
    story.began(from_step=10).after(minutes=1).lost()
    voided = story.told(ClockChanged)[-1]
    assert isinstance(voided, ClockChanged)
    assert voided.void_from is None
    assert story.run.clock.billable(story.now) == timedelta(minutes=3)


def test_what_was_trained_while_a_checkpoint_was_stored_is_free_after_a_loss() -> None:
    """A6: an upload of two minutes must not make the steps taken meanwhile be charged twice."""
    story = Story().training().after(minutes=3).checkpoint(10, storing_seconds=120).lost()
    assert story.run.clock.billable(story.now) == timedelta(minutes=1)
    story = Story().training().after(minutes=3).checkpoint(10, storing_seconds=9999).lost()
    assert story.run.clock.billable(story.now) == timedelta(0)


def test_a_lease_that_is_given_back_does_not_count() -> None:
    story = Story()
    for _ in range(5):
        story.training().released()
    assert story.is_in(State.RETRYING)
    assert story.run.task.failures == 0
    assert story.leased().run.attempt == 1


def test_a_transient_failure_is_tried_again_after_a_rest() -> None:
    story = Story().training().failed(FaultCode.STORAGE_CHECKSUM_MISMATCH)
    assert story.is_in(State.RETRYING)
    assert story.run.task.not_before > story.now
    assert messages(story) == ["Retrying after transient failure"]


def test_a_fault_of_the_inputs_ends_the_run_at_once() -> None:
    story = Story().training().failed(FaultCode.RUNTIME_LOSS_NOT_FINITE)
    assert story.is_in(State.FAILED)
    assert story.run.task.state is TaskState.FAILED


def test_out_of_memory_is_refunded_on_a_verified_model_only() -> None:
    """000-10 and 000-14; the hint for an unverified model is that of 000-15."""
    verified = Story().training().after(minutes=5).failed(FaultCode.RUNTIME_GPU_OOM)
    assert last(verified).refundable
    assert last(verified).reading.billable == timedelta(minutes=5)
    amber = Story(terms=replace(TERMS, vouched=False)).training().failed(FaultCode.RUNTIME_GPU_OOM)
    assert not last(amber).refundable
    assert amber.run.fault is not None
    assert "A10G" in amber.run.fault.remedy


def test_the_third_out_of_memory_of_a_configuration_changes_the_hint() -> None:
    """000-12: the platform is at fault; wait and retry."""
    second = Story().training().failed(FaultCode.RUNTIME_GPU_OOM, same_oom_count=1)
    third = Story().training().failed(FaultCode.RUNTIME_GPU_OOM, same_oom_count=2)
    assert second.run.fault is not None
    assert third.run.fault is not None
    assert second.run.fault.remedy == "Mend it."
    assert "within a few hours" in third.run.fault.remedy


def test_an_internal_fault_names_the_run_once() -> None:
    """004-07: the job id stands in the message."""
    story = Story().training().failed(FaultCode.RUNTIME_AUTH_NOT_ENFORCED)
    assert story.run.fault is not None
    assert TABLE[story.run.fault.code].category is Category.INTERNAL
    run_id = story.run.name.rpartition("/")[2]
    assert story.run.fault.message.endswith(f"(run {run_id})")
    assert final(story.run, story.run.fault, same_oom_count=0) == story.run.fault


def test_a_failed_export_keeps_the_adapter_and_its_category() -> None:
    """A5 and 001-40: Failed, category EXPORT, refunded, the adapter stays."""
    story = Story().training().trained().leased().failed(FaultCode.STORAGE_KEY_INVALID)
    fault = last(story).fault
    assert fault is not None
    assert TABLE[fault.code].category is Category.EXPORT
    assert fault.metadata["cause"] == "STORAGE_KEY_INVALID"
    assert story.run.artifact
    assert last(story).refundable


def test_a_lost_exporter_is_replaced_twice_and_runs_on_no_clock() -> None:
    story = Story().training().after(minutes=1).trained()
    for _ in range(2):
        story.after(minutes=9).leased().after(minutes=9).lost()
        assert (story.run.state, story.run.stage) == (State.TRAINING, Stage.EXPORTING)
    story.leased().lost()
    assert story.is_in(State.FAILED)
    assert last(story).reading.billable == timedelta(minutes=1)
    assert story.clock_changes() == ["STARTED", "STOPPED"]


@pytest.mark.parametrize(("seconds", "minutes"), [(59, 0), (60, 1), (479, 7)])
def test_cancel_is_charged_in_whole_minutes_and_never_refunded(seconds: int, minutes: int) -> None:
    """001-31 and 000-06: 0:59 -> 0, 1:00 -> 1, 7:59 -> 7."""
    story = Story().training().after(seconds=seconds).cancelled()
    assert last(story).state is State.CANCELLED
    assert last(story).reading.billable // timedelta(minutes=1) == minutes
    assert not last(story).refundable
    assert not story.told(ArtifactStored)


def test_stop_keeps_the_work() -> None:
    story = Story().training().stopped()
    assert story.run.finish is not None
    assert story.run.finish.cause is FinishCause.USER
    assert story.trained().run.stage is Stage.EXPORTING


def test_a_verb_that_the_state_does_not_allow_is_refused() -> None:
    ended = Story().cancelled()
    for verb in (ended.cancelled, ended.stopped, Story().stopped):
        with pytest.raises(Fault) as caught:
            verb()
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL


def test_the_budget_ends_the_training_before_it_costs_more() -> None:
    """The clock stops at the spent budget even when nobody looked at that moment."""
    terms = replace(TERMS, budget_micros=20_000)
    story = Story(terms=terms).training().after(minutes=2, seconds=29).ticked()
    assert not finishes(story)
    story.after(seconds=1).ticked()
    assert finishes(story) == [FinishCause.BUDGET]
    story.after(minutes=10).ticked().trained()
    assert story.run.clock.billable(story.now) == timedelta(minutes=2, seconds=59)
    assert story.is_in(State.TRAINING)


def test_the_timeout_ends_the_training_and_then_the_run() -> None:
    terms = replace(TERMS, timeout=timedelta(minutes=30))
    story = Story(terms=terms).training().after(minutes=30).ticked()
    assert story.run.finish is not None
    assert story.run.finish.cause is FinishCause.TIMEOUT
    story.now += FINISH_GRACE
    story.ticked()
    assert story.run.fault is not None
    assert story.run.fault.code is FaultCode.RUN_TIMEOUT


def test_a_report_counts_once_and_in_order() -> None:
    story = Story().leased()
    reports = (
        Report(number=2, age=timedelta(), body=TrainingBegan(from_step=0)),
        Report(number=1, age=timedelta(), body=StageReached(stage=Stage.INITIALIZATION)),
        Report(number=2, age=timedelta(), body=TrainingBegan(from_step=0)),
    )
    beat = Heartbeat(fencing_epoch=1, lease=LEASE, reports=reports)
    story.signal(beat).signal(beat)
    stages = [e.stage for e in story.events if isinstance(e.body, StateChanged)]
    assert stages == [Stage.PROVISIONING, Stage.INITIALIZATION, Stage.TRAINING]
    assert story.clock_changes() == ["STARTED"]


def test_a_node_cannot_say_that_something_was_before_its_lease() -> None:
    """A told age becomes database time, bounded by the lease and by what was told before."""
    story = Story().after(seconds=100).leased().after(seconds=10).began(age_seconds=500)
    assert story.run.start_time == NOON + timedelta(seconds=100)
    story = Story().leased().after(seconds=10).began(age_seconds=4)
    assert story.run.start_time == NOON + timedelta(seconds=6)
    story.paused()
    story.after(seconds=5).reported(StageReached(stage=Stage.SAVING), age_seconds=60)
    assert story.events[-1].time == NOON + timedelta(seconds=10)


def test_a_late_report_is_dropped_and_does_not_wedge_the_lease() -> None:
    story = Story().training().began().stage(Stage.DATA_DOWNLOAD).paused(paused=False)
    assert story.clock_changes() == ["STARTED"]
    assert story.run.stage is Stage.TRAINING
    assert story.run.lease is not None
    assert story.run.lease.report_number == 4


def test_an_old_epoch_changes_nothing() -> None:
    story = Story().training().lost().training()
    with pytest.raises(Fault) as caught:
        story.trained(epoch=1)
    assert caught.value.code is FaultCode.RUN_LEASE_LOST


def test_a_step_that_names_its_stage_names_it_in_every_event() -> None:
    """004-01: the stage stands on every event and failure."""
    story = Story().leased()
    for stage in (Stage.DATA_DOWNLOAD, Stage.INITIALIZATION):
        assert story.stage(stage).events[-1].stage is stage
    story.began()
    for stage in (Stage.SAVING, Stage.UPLOAD):
        assert story.stage(stage).events[-1].stage is stage
    story.failed(FaultCode.STORAGE_KEY_INVALID)
    assert story.run.fault is not None
    assert story.run.fault.stage is Stage.UPLOAD
