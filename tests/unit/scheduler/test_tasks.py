"""The lease machine by itself: whatever comes, epochs rise, attempts end, no end is left."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from scheduler.domain import tasks
from scheduler.domain.tasks import MAX_ATTEMPTS, Ending, LeaseOutcome, Task, TaskLeased, TaskState

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASE = timedelta(seconds=15)
ENDED = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED)


def leased(task: Task, now: datetime = NOW) -> Task:
    given = TaskLeased(lease_id="l", node="nodes/n", incarnation="i", lease=LEASE)
    return tasks.lease(task, given, now)


@pytest.mark.parametrize(
    ("ending", "state", "failures", "rest", "outcome"),
    [
        (Ending.COMPLETED, TaskState.DONE, 0, 0, LeaseOutcome.COMPLETED),
        (Ending.FAILED_RETRY, TaskState.QUEUED, 1, 2, LeaseOutcome.FAILED),
        (Ending.FAILED, TaskState.FAILED, 0, 0, LeaseOutcome.FAILED),
        (Ending.LOST_RETRY, TaskState.QUEUED, 1, 0, LeaseOutcome.LOST),
        (Ending.LOST, TaskState.FAILED, 0, 0, LeaseOutcome.LOST),
        (Ending.RELEASED, TaskState.QUEUED, 0, 0, LeaseOutcome.RELEASED),
        (Ending.CANCELLED, TaskState.CANCELLED, 0, 0, LeaseOutcome.CANCELLED),
    ],
)
def test_each_ending_has_its_state_its_count_and_its_rest(
    ending: Ending, state: TaskState, failures: int, rest: int, outcome: LeaseOutcome
) -> None:
    task = tasks.close(leased(tasks.queued("TOY", NOW)), ending, NOW)
    assert (task.state, task.failures) == (state, failures)
    assert task.not_before == NOW + timedelta(seconds=rest)
    assert task.lease is None
    assert task.newest is not None
    assert (task.newest.outcome, task.newest.end_time) == (outcome, NOW)


def test_a_rest_doubles() -> None:
    first = tasks.close(leased(tasks.queued("TOY", NOW)), Ending.FAILED_RETRY, NOW)
    second = tasks.close(leased(first), Ending.FAILED_RETRY, NOW)
    assert [each.not_before - NOW for each in (first, second)] == [
        timedelta(seconds=2),
        timedelta(seconds=4),
    ]


def test_a_task_that_follows_goes_on_from_the_epoch() -> None:
    trained = tasks.close(leased(tasks.queued("TRAIN", NOW)), Ending.COMPLETED, NOW)
    export = tasks.queued("EXPORT", NOW, fencing_epoch=trained.fencing_epoch)
    assert leased(export).fencing_epoch == 2


def test_a_lease_is_expired_from_the_moment_that_it_names() -> None:
    held = leased(tasks.queued("TOY", NOW)).lease
    assert held is not None
    assert not tasks.is_expired(held, NOW + LEASE - timedelta(microseconds=1))
    assert tasks.is_expired(held, NOW + LEASE)


@given(
    st.lists(st.one_of(st.just("lease"), st.sampled_from(["fail", "break", "lose"]),
                       st.sampled_from(["release", "cancel", "complete"])), max_size=30)
)  # fmt: skip
def test_whatever_comes_the_rules_hold(verbs: list[str]) -> None:
    task = tasks.queued("TOY", NOW)
    for number, verb in enumerate(verbs):
        now = NOW + timedelta(seconds=number)
        if verb == "lease" or task.lease is None:
            if task.state is not TaskState.QUEUED:
                with pytest.raises(Fault) as caught:
                    leased(task)
                assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL
                continue
            after = leased(task, now)
            assert after.fencing_epoch == task.fencing_epoch + 1
            assert after.newest is not None
            assert after.newest.attempt == task.failures + 1 <= MAX_ATTEMPTS
        else:
            for epoch in (task.fencing_epoch - 1, task.fencing_epoch + 1):
                with pytest.raises(Fault) as caught:
                    tasks.held(task, fencing_epoch=epoch)
                assert caught.value.code is FaultCode.RUN_LEASE_LOST
            ending = {
                "fail": tasks.ending_of_failure(task, transient=True),
                "break": tasks.ending_of_failure(task, transient=False),
                "lose": tasks.ending_of_loss(task),
                "release": Ending.RELEASED,
                "cancel": Ending.CANCELLED,
                "complete": Ending.COMPLETED,
            }[verb]
            after = tasks.close(task, ending, now)
            assert after.fencing_epoch == task.fencing_epoch
            assert after.queue_time == task.queue_time
            assert after.state in (*ENDED, TaskState.QUEUED)
            counted = after.state is TaskState.QUEUED and ending is not Ending.RELEASED
            assert after.failures == task.failures + counted < MAX_ATTEMPTS
        tasks.check(after)
        task = after


def test_an_end_without_a_lease_leaves_the_newest_as_it_was() -> None:
    lost = tasks.close(leased(tasks.queued("TOY", NOW)), Ending.LOST_RETRY, NOW)
    later = NOW + timedelta(hours=1)
    assert tasks.close(lost, Ending.CANCELLED, later) == replace(lost, state=TaskState.CANCELLED)
