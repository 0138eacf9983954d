"""Decisions of an export: each transition, each refusal, and what never happens."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexicon.faults import TABLE, Fault, FaultCode, Stage
from scheduler.domain.activity import Activity
from scheduler.domain.exports import (
    ENDED,
    KIND,
    ArtifactGone,
    Export,
    ExportSignal,
    ExportState,
    ExportStored,
    check_room,
    decide,
)
from scheduler.domain.signals import (
    ActivityReported,
    CancelRequested,
    Heartbeat,
    LeaseLost,
    Loss,
    Report,
    TaskFailed,
    TaskReleased,
)
from scheduler.domain.tasks import LeaseOutcome, RunFault, TaskLeased, queued

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASE = timedelta(seconds=15)


def an_export() -> Export:
    """One that waits."""
    return Export(
        name="projects/acme/exports/export-1",
        artifact="projects/acme/artifacts/run-1",
        run="projects/acme/runs/run-1",
        base_model="m",
        quantization="Q8_0",
        create_time=NOW,
        update_time=NOW,
        task=queued(KIND, NOW),
    )


def leased(export: Export, *, lease_id: str = "l1") -> Export:
    signal = TaskLeased(lease_id=lease_id, node="nodes/e", incarnation="i", lease=LEASE)
    return decide(export, signal, NOW)


def a_loss(epoch: int) -> LeaseLost:
    return LeaseLost(fencing_epoch=epoch, loss=Loss.EXPIRED)


def a_beat(activity: Activity, *, number: int = 1) -> Heartbeat:
    body = ActivityReported(activity=activity)
    report = Report(number=number, age=timedelta(), body=body)
    return Heartbeat(fencing_epoch=1, lease=LEASE, reports=(report,))


def a_fault(code: FaultCode = FaultCode.EXPORT_DISK_FULL) -> RunFault:
    return RunFault(code=code, message="It broke.", remedy="Mend it.", stage=Stage.EXPORTING)


def test_it_goes_from_queued_to_completed() -> None:
    running = leased(an_export())
    assert (running.state, running.task.fencing_epoch, running.sequence) == ("EXPORTING", 1, 2)
    assert running.lease is not None
    assert running.lease.expire_time == NOW + LEASE
    done = decide(running, ExportStored(fencing_epoch=1, file=b"f", proof=b"p"), NOW)
    assert (done.state, done.file, done.proof, done.end_time) == ("COMPLETED", b"f", b"p", NOW)
    assert done.lease is not None
    assert done.lease.outcome is LeaseOutcome.COMPLETED
    assert done.sequence == 3


def test_a_heartbeat_prolongs_and_tells_nothing() -> None:
    running = leased(an_export())
    later = NOW + timedelta(seconds=5)
    beat = decide(running, Heartbeat(fencing_epoch=1, lease=LEASE), later)
    assert beat.sequence == running.sequence
    assert beat.lease is not None
    assert beat.lease.expire_time == later + LEASE


def test_what_its_exporter_does_is_told_once_and_ends_with_the_work() -> None:
    running = leased(an_export())
    merging = Activity(text="merging", percent=40.0)
    signal = a_beat(merging)
    told = decide(running, signal, NOW)
    assert (told.activity, told.sequence) == (merging, running.sequence + 1)
    assert decide(told, signal, NOW).sequence == told.sequence
    assert decide(told, a_beat(merging, number=2), NOW).sequence == told.sequence
    for end in (
        TaskReleased(fencing_epoch=1),
        a_loss(1),
        TaskFailed(fencing_epoch=1, fault=a_fault()),
        ExportStored(fencing_epoch=1, file=b"f", proof=b"p"),
        CancelRequested(),
    ):
        assert decide(told, end, NOW).activity is None


def test_a_lost_exporter_is_replaced_twice_and_then_it_is_a_fault() -> None:
    export = an_export()
    for failures in (1, 2):
        running = leased(export)
        export = decide(running, a_loss(running.task.fencing_epoch), NOW)
        assert (export.state, export.task.failures) == ("QUEUED", failures)
        assert export.fault is not None
        assert export.fault.code is FaultCode.RUNTIME_WORKER_LOST
    running = leased(export)
    assert running.lease is not None
    assert running.lease.attempt == 3
    ended = decide(running, a_loss(3), NOW)
    assert ended.state is ExportState.FAILED
    assert ended.fault is not None
    assert ended.fault.code is FaultCode.RUNTIME_GGUF_EXPORT_FAILED
    assert ended.fault.metadata["cause"] == "RUNTIME_WORKER_LOST"
    assert "given up after 3 attempts" in ended.fault.message


def test_a_failure_of_the_moment_rests_before_it_is_tried_again() -> None:
    code = next(
        code for code, row in TABLE.items() if row.owner == "PLATFORM" and row.retry == "SAME"
    )
    running = leased(an_export())
    again = decide(running, TaskFailed(fencing_epoch=1, fault=a_fault(code)), NOW)
    assert again.state is ExportState.QUEUED
    assert again.task.not_before > NOW
    assert again.task.failures == 1


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (FaultCode.EXPORT_NOOP_MERGE, FaultCode.EXPORT_NOOP_MERGE),
        (FaultCode.QUOTA_ARTIFACTS_EXCEEDED, FaultCode.QUOTA_ARTIFACTS_EXCEEDED),
        (FaultCode.RUNTIME_TRAINING_FAILED, FaultCode.RUNTIME_GGUF_EXPORT_FAILED),
    ],
)
def test_a_failure_for_good_is_kept_on_the_export(code: FaultCode, shown: FaultCode) -> None:
    ended = decide(leased(an_export()), TaskFailed(fencing_epoch=1, fault=a_fault(code)), NOW)
    assert ended.state is ExportState.FAILED
    assert ended.fault is not None
    assert ended.fault.code is shown


def test_what_was_given_back_does_not_count() -> None:
    back = decide(leased(an_export()), TaskReleased(fencing_epoch=1), NOW)
    assert (back.state, back.task.failures, back.fault) == ("QUEUED", 0, None)


@pytest.mark.parametrize("signal", [CancelRequested(), ArtifactGone()])
def test_cancelled_or_deleted_ends_it_wherever_it_stands(signal: ExportSignal) -> None:
    for export in (an_export(), leased(an_export())):
        ended = decide(export, signal, NOW)
        assert ended.has_ended
        assert ended.task.lease is None
        with pytest.raises(Fault) as caught:
            decide(ended, signal, NOW)
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL
    gone = decide(an_export(), ArtifactGone(), NOW)
    assert gone.fault is not None
    assert gone.fault.code is FaultCode.ARTIFACT_NOT_FOUND


def test_an_old_epoch_is_refused_everywhere() -> None:
    again = leased(decide(leased(an_export()), a_loss(1), NOW), lease_id="l2")
    signals: list[ExportSignal] = [
        Heartbeat(fencing_epoch=1, lease=LEASE),
        ExportStored(fencing_epoch=1, file=b"f", proof=b""),
        TaskFailed(fencing_epoch=1, fault=a_fault()),
        a_loss(1),
        TaskReleased(fencing_epoch=1),
    ]
    for signal in signals:
        with pytest.raises(Fault) as caught:
            decide(again, signal, NOW)
        assert caught.value.code is FaultCode.RUN_LEASE_LOST


def test_time_does_not_go_back() -> None:
    running = replace(leased(an_export()), update_time=NOW + timedelta(seconds=9))
    done = decide(running, ExportStored(fencing_epoch=1, file=b"f", proof=b""), NOW)
    assert done.end_time == NOW + timedelta(seconds=9)


def test_room_is_checked_with_its_sizes() -> None:
    check_room(required_bytes=5, used_bytes=5, quota_bytes=10)
    with pytest.raises(Fault) as caught:
        check_room(required_bytes=6, used_bytes=5, quota_bytes=10)
    assert caught.value.code is FaultCode.QUOTA_ARTIFACTS_EXCEEDED
    assert caught.value.metadata["free_bytes"] == "5"
    with pytest.raises(Fault):
        check_room(required_bytes=1, used_bytes=11, quota_bytes=10)


def decided(export: Export, signal: ExportSignal) -> Export | Fault:
    try:
        return decide(export, signal, NOW)
    except Fault as fault:
        return fault


SIGNALS = st.one_of(
    st.builds(
        TaskLeased,
        lease_id=st.just("l"),
        node=st.just("nodes/e"),
        incarnation=st.just("i"),
        lease=st.just(LEASE),
    ),
    *(
        st.builds(kind, fencing_epoch=st.integers(0, 5), **more)
        for kind, more in (
            (Heartbeat, {"lease": st.just(LEASE)}),
            (ExportStored, {"file": st.just(b"f"), "proof": st.just(b"")}),
            (TaskFailed, {"fault": st.sampled_from(list(TABLE)).map(a_fault)}),
            (LeaseLost, {"loss": st.sampled_from(Loss)}),
            (TaskReleased, {}),
        )
    ),
    st.just(CancelRequested()),
    st.just(ArtifactGone()),
)


@given(st.lists(SIGNALS, max_size=25))
def test_whatever_comes_the_rules_hold(signals: list[ExportSignal]) -> None:
    """No end is left; epochs and events only rise; three attempts at most; one file or none."""
    export = an_export()
    for signal in signals:
        after = decided(export, signal)
        if isinstance(after, Fault):
            assert after.code in (FaultCode.RUN_LEASE_LOST, FaultCode.RUN_TRANSITION_ILLEGAL)
            continue
        assert export.state not in ENDED
        assert after.sequence - export.sequence in (0, 1)
        assert after.task.fencing_epoch - export.task.fencing_epoch in (0, 1)
        assert (after.task.fencing_epoch > export.task.fencing_epoch) == isinstance(
            signal, TaskLeased
        )
        assert 0 <= after.task.failures <= 2
        assert (after.state is ExportState.COMPLETED) == bool(after.file)
        assert (after.run, after.artifact) == (export.run, export.artifact)
        export = after
