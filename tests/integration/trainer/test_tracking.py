"""The tracking tools themselves, where they are installed: what was told can be read there."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.training import a_plan
from trainer.trackers import Mlflow, WeightsAndBiases
from trainer.tracking import AttemptEnd, Point, subject_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SUBJECT = subject_of(a_plan(), from_step=0)
POINTS = [Point(step=step, unix_seconds=9.0, figures={"train/loss": 1 / step}) for step in (1, 2)]
READY_SECONDS_MAX = 120.0


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    """An MLflow server of the test's own, over SQLite."""
    command = shutil.which("mlflow")
    if command is None:
        pytest.skip("no mlflow on the PATH")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        # It has an environment of its own; ours would be found before it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        server = subprocess.Popen(
            arguments, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not _is_up(url):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        # With its workers, which do not hurry.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def test_a_real_mlflow_server_keeps_what_it_is_told(mlflow: str) -> None:
    for _ in range(2):
        tracker = Mlflow(mlflow, SUBJECT)
        tracker.log(POINTS)
        tracker.end(AttemptEnd.COMPLETED)
    with httpx.Client(base_url=f"{mlflow}/api/2.0/mlflow", timeout=20) as http:
        name = {"experiment_name": "tunesmith/local"}
        found = http.get("/experiments/get-by-name", params=name).json()["experiment"]
        ids = [found["experiment_id"]]
        runs = http.post("/runs/search", json={"experiment_ids": ids}).json()["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"] * 2
    data = runs[0]["data"]
    assert {one["key"]: one["value"] for one in data["metrics"]} == {"train/loss": 0.5}
    assert {one["key"]: one["value"] for one in data["params"]} == dict(SUBJECT.settings)


def test_weights_and_biases_keeps_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `tracking` is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = WeightsAndBiases(str(tmp_path), SUBJECT)
    tracker.log(POINTS)
    tracker.end(AttemptEnd.COMPLETED)
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for words in (b"train/loss", b"tunesmith-local", b"tunesmith/anvil-3m"):
        assert words in content
