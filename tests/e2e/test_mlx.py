"""A run on MLX through the whole platform: quote, training, GGUF, bill."""

import time

import pytest

from tests.demo import lesson
from tests.support.mlx import needs_mlx
from tests.support.whole_stack import BASE
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.e2e, needs_mlx, pytest.mark.slow, pytest.mark.timeout(600)]


REGISTER_SECONDS = 240.0


def wait_for_mlx(client: Client) -> None:
    """A node registers once its child has loaded its libraries; until then nobody can do it."""
    deadline = time.monotonic() + REGISTER_SECONDS
    while not any("mlx" in node.capabilities for node in client.nodes.list()):
        assert time.monotonic() < deadline, "no node has registered with MLX"
        time.sleep(0.5)


def test_a_run_on_mlx_ends_with_a_proven_gguf(client: Client, habit: str) -> None:
    """A17, 002-40: labelled experimental, leased by capability, exported like any other run."""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.datasets[:] = [habit]
    spec.training.backend = spec_pb2.BACKEND_MLX
    spec.training.max_steps = 8
    spec.training.micro_batch_size = 2
    report = client.runs.validate(spec)
    wait_for_mlx(client)
    run = client.runs.submit(spec)
    told = list(client.runs.watch(run.name))
    run = client.runs.get(run.name)
    assert run.state == run_pb2.RUN_STATE_COMPLETED, run.fault
    assert run.metrics.step == 8
    assert told
    assert any("experimental" in finding.fault.message for finding in report.findings)
