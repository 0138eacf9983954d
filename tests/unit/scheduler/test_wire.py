"""Protobuf ⇄ domain: total over the enums, and bounded in what it takes."""

from datetime import timedelta

import pytest

from lexicon.faults import TABLE, Fault, FaultCode, Stage
from modelspec.recipe import DEFAULT_PROMPTS
from scheduler import events, wire, wire_exports, wire_work
from scheduler.domain.node import NodeRecord
from scheduler.domain.run import Labels, Record, State, Submission
from scheduler.domain.signals import CheckpointReported, SamplesReported
from scheduler.domain.tasks import RunFault, TaskKind
from scheduler.run_tasks import Runs
from tests.support.runs import NAME, NOON, TERMS, Story, a_run
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2


def test_every_state_of_the_contract_is_ours_and_the_other_way_round() -> None:
    """001-01: the enum has exactly the seven user states."""
    numbers = [number for number in run_pb2.RunState.values() if number]
    assert [wire.state_to_proto(state) for state in wire.states_from_proto(numbers)] == numbers
    assert set(wire.states_from_proto(numbers)) == set(State)
    with pytest.raises(Fault) as caught:
        wire.states_from_proto([0])
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


def test_every_kind_of_task_goes_there_and_back() -> None:
    for kind in TaskKind:
        assert wire_work.kind_from_proto(wire_work.kind_to_proto(kind)) is kind


@pytest.mark.parametrize("code", TABLE)
def test_every_code_is_explained_and_survives_a_fault(code: FaultCode) -> None:
    """000-01 and 002-42: each has one category and says whether it is retryable."""
    explained = wire.explanation_to_proto(code)
    assert explained.category != fault_pb2.CATEGORY_UNSPECIFIED
    assert explained.owner != fault_pb2.OWNER_UNSPECIFIED
    fault = RunFault(
        code=code, message="m", remedy="r", stage=Stage.UPLOAD, node="nodes/n", metadata={"a": "1"}
    )
    proto = wire.fault_to_proto(fault)
    assert proto is not None
    assert wire.fault_from_proto(proto, stage=Stage.UPLOAD, node="nodes/n") == fault


def test_every_event_of_a_story_has_its_type_and_subject() -> None:
    story = (
        Story()
        .leased()
        .acting("loading")
        .began()
        .step(1)
        .checkpoint(1)
        .warned("w")
        .paused()
        .trained()
        .leased()
    )
    story.exported()
    rows = [row for decision in story.decisions for row in events.outgoing(decision)]
    protos = [event_pb2.Event.FromString(row.payload) for row in rows]
    kinds = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    # Exports of stored adapters are told of by a machine of their own.
    assert {proto.type for proto in protos} == kinds - {wire_exports.EVENT_TYPE}
    for row, proto in zip(rows, protos, strict=True):
        assert proto.WhichOneof("payload") == proto.type
        assert row.subject == f"tunesmith.run.v1.acme.run-1.{proto.type}"
        assert row.event_id == proto.event_id == f"run-1-{proto.sequence}"
    assert [events.is_last(row.subject) for row in rows] == [False] * (len(rows) - 1) + [True]


def test_samples_are_cut_to_what_an_event_can_carry() -> None:
    """001-18: exactly three samples."""
    endless = run_pb2.Sample(prompt="p" * 10**6, completion="c" * 10**6, flags=["f"] * 100)
    document = wire_work.pack_samples(work_service_pb2.TrainResult(samples=[endless] * 5))
    assert len(document) < 900_000
    assert len(wire.samples_of(document)) == 3


def test_a_merge_history_is_kept_within_bounds() -> None:
    """002-34: it stands on the run, beside the samples."""
    merge = run_pb2.RunMerge(number=2, weight=0.7, drift_cosine=0.0, sha256="a" * 10**6)
    result = work_service_pb2.TrainResult(merges=[merge] * 300)
    document = wire_work.pack_samples(result)
    assert len(document) < 900_000
    kept = wire.merges_of(document)
    assert len(kept) == 100
    assert (kept[0].number, kept[0].weight, kept[0].sha256) == (2, 0.7, "a" * 64)
    assert kept[0].HasField("drift_cosine")
    assert not kept[0].HasField("delta_norm")


def test_samples_while_training_are_bounded_as_those_at_the_end() -> None:
    """001-18"""
    endless = run_pb2.Sample(prompt="p" * 10**6, completion="c", step=7)
    taken = work_service_pb2.SamplesTaken(samples=[endless] * 5)
    proto = work_service_pb2.TaskReport(report_number=1, samples=taken)
    (report,) = wire_work.reports_from_proto([proto], prefix="")
    assert isinstance(report.body, SamplesReported)
    assert len(report.body.samples) < 900_000
    assert [sample.step for sample in wire.samples_of(report.body.samples)] == [7, 7, 7]


@pytest.mark.parametrize(
    ("reason", "state"),
    [("", work_pb2.NODE_STATE_READY), ("A process hangs.", work_pb2.NODE_STATE_DRAINING)],
)
def test_a_node_that_takes_no_work_is_draining_and_says_why(reason: str, state: int) -> None:
    said = work_pb2.Node(unfit_reason=reason)
    node = NodeRecord(
        name="nodes/n1",
        incarnation="i",
        kind=TaskKind.TRAIN,
        tier="cpu",
        description=said.SerializeToString(),
        register_time=NOON,
        heartbeat_time=NOON,
    )
    shown = wire_work.node_to_proto(node, now=NOON, silent=timedelta(seconds=15))
    assert (shown.state, shown.unfit_reason) == (state, reason)


def test_secrets_and_nul_are_taken_out_of_a_workers_words() -> None:
    assert wire.clean("a\x00b Bearer abcdefghijkl") == "ab Bearer ***"


@pytest.mark.parametrize("keep_count", [0, 1, 5])
def test_an_attempt_may_fall_back_to_the_checkpoint_before_if_one_is_kept(keep_count: int) -> None:
    """002-13: the newest alone would be all or nothing."""
    newest, before, oldest = (
        wire_work.pack_files(
            [work_pb2.OutputFile(path=f"{name}/m.json", uri=f"object://{name}", sha256="a" * 64)]
        )
        for name in ("newest", "before", "oldest")
    )
    story = Story().training().reported(CheckpointReported(step=4, files=newest)).lost().leased()
    snapshot = run_pb2.RunSnapshot(
        training=spec_pb2.TrainingConfig(checkpoint_keep_count=keep_count)
    )
    record = Record(
        run=story.run,
        submission=Submission(
            spec=b"",
            snapshot=snapshot.SerializeToString(),
            quote=b"",
            inputs=b"",
            plan="local",
            fingerprint="f",
        ),
        labels=Labels(display_name="x"),
        earlier=(before, oldest),
    )
    uris = wire_work.train_inputs(record)
    assert uris == ["object://newest", "object://before"][: 1 + min(keep_count, 1)]
    task = wire_work.train_task(record, urls={uri: f"https://{uri}" for uri in uris}, hub_token="")
    lease = work_pb2.Lease(train=task)
    earlier = [file.path for each in lease.train.earlier_checkpoints for file in each.files]
    assert earlier == ["before/m.json"][:keep_count]
    assert len(wire_work.files_of(lease)) == len(uris)


@pytest.mark.parametrize("given", [(), ("What is a hammer for?",)])
def test_a_run_without_prompts_is_asked_the_platforms_own(given: tuple[str, ...]) -> None:
    story = Story().leased()
    submission = Submission(
        spec=spec_pb2.RunSpec(sample_prompts=given).SerializeToString(),
        snapshot=b"",
        quote=b"",
        inputs=b"",
        plan="local",
        fingerprint="f",
    )
    record = Record(run=story.run, submission=submission, labels=Labels(display_name="x"))
    task = wire_work.train_task(record, urls={}, hub_token="")
    assert tuple(task.sample_prompts) == (given or DEFAULT_PROMPTS)


def test_an_output_lies_under_its_run_epoch_and_digest() -> None:
    """What a lost attempt stores is apart from what its successor does."""
    record = Record(
        run=a_run(TERMS),
        submission=Submission(
            spec=b"", snapshot=b"", quote=b"", inputs=b"", plan="local", fingerprint="f"
        ),
        labels=Labels(display_name="x"),
    )
    assert wire_work.train_inputs(record) == []
    assert wire.run_to_proto(record, now=NOON).name == NAME
    file = work_pb2.OutputFile(path="a/b.txt", sha256="c" * 64)
    prefix = Runs().about(record).prefix(7)
    uri = wire_work.output_uri(file, prefix=prefix)
    assert uri == f"object://runs/run-1/7/{'c' * 16}/a/b.txt"
