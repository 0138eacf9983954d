"""The story of a run, told by WatchRun, heard on NATS, and watched by a foreign client."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from tests.demo import lesson
from tests.e2e.conftest import Taught
from tests.support.whole_stack import BASE
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
BUF = str(Path(sys.executable).with_name("buf"))


def test_a_subscriber_hears_every_event_once_and_in_sequence(taught: Taught) -> None:
    """Written with nothing but nats-py and the published protos: no gap, nothing twice."""
    heard = taught.heard.of(taught.run.name)
    assert [event.sequence for event in heard] == list(range(1, len(heard) + 1))
    assert len({event.event_id for event in heard}) == len(heard)
    assert [event.SerializeToString() for event in heard] == [
        event.SerializeToString() for event in taught.told
    ]
    last = heard[-1]
    assert last.WhichOneof("payload") == "ended"
    assert taught.run.last_sequence == last.sequence


def test_subjects_and_message_ids_follow_the_contract(taught: Taught) -> None:
    run_id = taught.run.name.rpartition("/")[2]
    heard = taught.heard
    for event, subject, message_id in zip(
        heard.events, heard.subjects, heard.message_ids, strict=True
    ):
        assert subject == f"tunesmith.run.v1.local.{run_id}.{event.type}"
        assert message_id == event.event_id
        assert event.schema_version == 1


def test_states_come_in_the_usual_order(taught: Taught) -> None:
    """001-09, 004-01, 004-02, 004-03, 004-04, 004-05: nine stages, each once and in order."""
    states: list[run_pb2.RunState] = []
    stages: list[fault_pb2.Stage] = []
    for event in taught.told:
        if not states or states[-1] != event.state:
            states.append(event.state)
        if not stages or stages[-1] != event.stage:
            stages.append(event.stage)
    assert states == [
        run_pb2.RUN_STATE_QUEUED,
        run_pb2.RUN_STATE_WAITING_FOR_GPU,
        run_pb2.RUN_STATE_TRAINING,
        run_pb2.RUN_STATE_COMPLETED,
    ]
    assert stages == sorted(stages), "a stage came twice or in the wrong order"
    assert len(stages) == 9


def test_the_clock_starts_with_the_first_step_and_stops_before_the_export(taught: Taught) -> None:
    """001-04, 001-29"""
    changes = [
        (event.clock_changed.change, position)
        for position, event in enumerate(taught.told)
        if event.WhichOneof("payload") == "clock_changed"
    ]
    assert [change for change, _ in changes] == [
        event_pb2.CLOCK_CHANGE_STARTED,
        event_pb2.CLOCK_CHANGE_STOPPED,
    ]
    kinds = [event.WhichOneof("payload") for event in taught.told]
    assert changes[0][1] < kinds.index("progressed")
    stored = [position for position, kind in enumerate(kinds) if kind == "artifact_stored"]
    assert len(stored) == 2
    assert changes[1][1] < stored[1] < kinds.index("ended")


def test_progress_never_falls_and_ends_at_a_hundred(taught: Taught) -> None:
    """001-11, 001-12, 001-13, 001-15"""
    metrics = [e.progressed.metrics for e in taught.told if e.progressed.HasField("metrics")]
    assert metrics
    steps = [m.step for m in metrics]
    assert steps == sorted(steps)
    assert metrics[-1].progress_percent == pytest.approx(100)
    assert all(m.total_epochs >= m.epoch >= 1 for m in metrics)
    assert all(m.loss > 0 for m in metrics)
    assert metrics[-1].loss < metrics[0].loss


def test_what_has_no_metrics_is_told_too(taught: Taught) -> None:
    """The steps of the export, each after the one before it."""
    told = [e for e in taught.told if e.WhichOneof("payload") == "activity_changed"]
    exporting = [e for e in told if e.stage == fault_pb2.STAGE_EXPORTING]
    words = list(dict.fromkeys(e.activity_changed.activity.text for e in exporting))
    assert words[-1].startswith("storing")
    for event in exporting:
        assert 0 <= event.activity_changed.activity.percent <= 100


def test_a_foreign_client_lists_submits_and_watches(client: Client, habit: str) -> None:
    """A request as JSON, by reflection: nothing of the SDK takes part."""
    listed = _buf(client, "--list-methods", path="").splitlines()
    assert "tunesmith.api.run.v1.RunService/SubmitRun" in listed
    assert "tunesmith.api.event.v1.EventService/WatchRun" in listed
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.datasets[:] = [f"projects/local/datasets/{habit}"]
    spec.training.max_steps = 20
    spec.export.gguf = False
    request = run_service_pb2.SubmitRunRequest(
        request_id="a-foreign-client", parent="projects/local", spec=spec
    )
    body = json.dumps(MessageToDict(request))
    path = "/tunesmith.api.run.v1.RunService/SubmitRun"
    run = json.loads(_buf(client, "-d", body, path=path))["run"]
    again = json.loads(_buf(client, "-d", body, path=path))["run"]
    assert again["name"] == run["name"], "the same request id made a second run"
    watch = json.dumps({"name": run["name"]})
    told = _buf(client, "-d", watch, path="/tunesmith.api.event.v1.EventService/WatchRun")
    events, decoder, rest = [], json.JSONDecoder(), told.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        events.append(document["event"])
        rest = rest[end:].lstrip()
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["ended"]["state"] == "RUN_STATE_COMPLETED"


def _buf(client: Client, *words: str, path: str) -> str:
    """`buf curl` against the gateway, by reflection alone."""
    mine = client.credentials
    command = [
        *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect"),
        *("--header", f"authorization: Bearer {mine.token}", "--reflect-header", "*"),
        *words,
        f"http://{mine.target}{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
