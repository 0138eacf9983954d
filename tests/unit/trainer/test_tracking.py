"""Reports to a tracking tool: everything in order, and no trouble of the tool reaches the run."""

import json
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from lexicon.faults import Fault, FaultCode
from tests.support.training import a_plan
from trainer import trackers
from trainer.trackers import Destination, Mlflow, TensorBoard, tracker_for
from trainer.tracking import (
    BATCH_POINTS_MAX,
    QUEUED_POINTS_MAX,
    AttemptEnd,
    Point,
    Subject,
    Tool,
    Tracking,
    figures,
    subject_of,
)
from tunesmith.api.run.v1 import run_pb2

SUBJECT = subject_of(a_plan(attempt=2), from_step=3)
WAIT_SECONDS = 10.0


class Kept:
    """A tool that keeps what it is told, once it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[int]] = []
        self.outcome: AttemptEnd | None = None

    def log(self, points: Sequence[Point]) -> None:
        self.open.wait(WAIT_SECONDS)
        self.batches.append([point.step for point in points])

    def end(self, outcome: AttemptEnd) -> None:
        self.outcome = outcome


def some_metrics(step: int, **changes: Any) -> run_pb2.RunMetrics:
    return run_pb2.RunMetrics(step=step, loss=1.0 / step, learning_rate=1e-3, **changes)


def test_steps_arrive_in_order_and_then_the_end() -> None:
    tool = Kept()
    tool.open.set()
    tracking = Tracking(lambda: tool)
    for step in range(1, 200):
        tracking.add(some_metrics(step))
    tracking.end(AttemptEnd.COMPLETED)
    assert tracking.wait(seconds=WAIT_SECONDS)
    assert [step for batch in tool.batches for step in batch] == list(range(1, 200))
    assert max(map(len, tool.batches)) <= BATCH_POINTS_MAX
    assert tool.outcome is AttemptEnd.COMPLETED


def test_a_tool_that_hangs_costs_its_points_and_the_end_is_still_told() -> None:
    """Nobody waits for it: all of this is over before it answers at all."""
    tool = Kept()
    tracking = Tracking(lambda: tool)
    for step in range(1, 3 * QUEUED_POINTS_MAX):
        tracking.add(some_metrics(step))
    tracking.end(AttemptEnd.CANCELLED)
    assert not tracking.wait(seconds=0.0)
    tool.open.set()
    assert tracking.wait(seconds=WAIT_SECONDS)
    assert tool.outcome is AttemptEnd.CANCELLED
    assert sum(map(len, tool.batches)) <= QUEUED_POINTS_MAX + BATCH_POINTS_MAX


@pytest.mark.parametrize("begins", [False, True])
def test_a_tool_that_fails_is_warned_of_once_and_hurts_nobody(
    begins: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Kept):
        def log(self, points: Sequence[Point]) -> None:
            raise OSError("No space left on device")

    def begin() -> Broken:
        if not begins:
            raise ImportError("No module named 'wandb'")
        return Broken()

    tracking = Tracking(begin)
    for step in range(1, 50):
        tracking.add(some_metrics(step))
    tracking.end(AttemptEnd.COMPLETED)
    assert tracking.wait(seconds=WAIT_SECONDS)
    tracking.add(some_metrics(50))
    out = capfd.readouterr()
    assert (out.out + out.err).count("[warning") == 1


def test_what_was_not_measured_or_is_not_finite_is_left_out() -> None:
    shown = figures(some_metrics(1, grad_norm=float("inf")))
    assert shown["train/loss"] == 1.0
    assert "train/grad_norm" not in shown
    assert "validation/loss" not in shown
    assert "train/remaining_seconds" not in shown
    more = some_metrics(1, validation_loss=0.5, preference_margin=0.1, preference_accuracy=0.75)
    more.remaining.seconds = 90
    assert figures(more) | {
        "validation/loss": 0.5,
        "train/preference_margin": 0.1,
        "train/preference_accuracy": 0.75,
        "train/remaining_seconds": 90.0,
    } == figures(more)


def test_nothing_is_reported_where_nobody_asked_for_it() -> None:
    assert tracker_for(Destination(tool=Tool.NONE, uri=""), SUBJECT) is None


def test_a_tool_without_a_place_is_refused_when_the_node_starts() -> None:
    with pytest.raises(Fault) as caught:
        Destination(tool=Tool.MLFLOW, uri="")
    assert caught.value.code is FaultCode.CONFIG_ENV_MISSING


def test_no_path_of_the_node_is_told() -> None:
    plan = a_plan(work_folder="/secret/work", log_path="/secret/log")
    told = " ".join(subject_of(plan, from_step=0).settings.values())
    assert "/" in plan.base.folder
    assert plan.base.folder not in told
    assert "secret" not in told


class FakeMlflow:
    """The part of an MLflow server that is needed, with its limits, after its REST API's page."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        path = request.url.path.removeprefix("/prefix/api/2.0/mlflow")
        body = json.loads(request.content) if request.content else {}
        match path:
            case "/experiments/get-by-name":
                name = request.url.params["experiment_name"]
                if name not in self.experiments:
                    return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
                return httpx.Response(
                    200, json={"experiment": {"experiment_id": self.experiments[name]}}
                )
            case "/experiments/create":
                self.experiments[body["name"]] = "7"
                return httpx.Response(200, json={"experiment_id": "7"})
            case "/runs/create":
                assert body["experiment_id"] == "7"
                self.runs["r"] = {"name": body["run_name"], "metrics": [], "params": {}}
                return httpx.Response(200, json={"run": {"info": {"run_id": "r"}}})
            case "/runs/log-batch":
                run = self.runs[body["run_id"]]
                if len(body.get("metrics", ())) > 1000 or len(body.get("params", ())) > 100:
                    return httpx.Response(400, json={"error_code": "INVALID_PARAMETER_VALUE"})
                run["metrics"] += body.get("metrics", [])
                run["params"] |= {one["key"]: one["value"] for one in body.get("params", ())}
                return httpx.Response(200, json={})
            case "/runs/update":
                self.runs[body["run_id"]]["status"] = body["status"]
                return httpx.Response(200, json={})
        return httpx.Response(500)


def test_mlflow_gets_experiment_run_settings_figures_and_end() -> None:
    server = FakeMlflow()
    transport = httpx.MockTransport(server)
    shown = figures(some_metrics(1, validation_loss=0.5, preference_margin=0.1))
    for _ in range(2):
        tracker = Mlflow("http://mlflow/prefix/", SUBJECT, token="t", transport=transport)
        tracker.log(
            [Point(step=step, unix_seconds=5.0, figures=shown) for step in range(BATCH_POINTS_MAX)]
        )
        tracker.end(AttemptEnd.FAILED)
    run = server.runs["r"]
    assert run["name"] == "r-1.2"
    assert run["params"]["rank"] == "4"
    assert {one["timestamp"] for one in run["metrics"]} == {5000}
    assert len(run["metrics"]) == BATCH_POINTS_MAX * len(shown)
    assert run["status"] == "FAILED"
    made = [request for request in server.seen if request.url.path.endswith("experiments/create")]
    assert len(made) == 1
    assert {request.headers["Authorization"] for request in server.seen} == {"Bearer t"}


def test_an_answer_of_mlflow_that_is_no_success_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(500))
    with pytest.raises(httpx.HTTPStatusError):
        Mlflow("http://mlflow", SUBJECT, transport=transport)


def records(path: Path) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + size]
        at += 12 + size + 4


def test_tensorboard_reads_back_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tracking` is not installed")
    from tensorboardX.proto.event_pb2 import Event

    tracker = TensorBoard(tmp_path, SUBJECT)
    for step in (4, 5):
        tracker.log([Point(step=step, unix_seconds=9.0, figures=figures(some_metrics(step)))])
    tracker.end(AttemptEnd.COMPLETED)
    (path,) = (tmp_path / "local" / "r-1").iterdir()
    events = [Event.FromString(record) for record in records(path)]
    losses = {
        event.step: (value.simple_value, event.wall_time)
        for event in events
        for value in event.summary.value
        if value.tag == "train/loss"
    }
    assert losses == {4: (0.25, 9.0), 5: (pytest.approx(0.2), 9.0)}
    assert any(b"anvil" in record for record in records(path))


def test_tools_are_not_imported_before_they_are_wanted() -> None:
    assert not {"tensorboardX", "wandb"} & set(vars(trackers))
    assert isinstance(SUBJECT, Subject)
