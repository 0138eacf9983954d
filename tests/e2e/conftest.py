"""The whole stack, once for all tests here, and one run that taught the demo's habit."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.demo import bundles, lesson
from tests.demo.stack import Stack
from tests.support import subscriber
from tests.support.whole_stack import BASE, settled
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A completed run with all that it left behind.

    Attributes:
        told: events as WatchRun gave them.
        heard: events as a subscriber of nats-server heard them.
    """

    run: run_pb2.Run
    told: tuple[event_pb2.Event, ...]
    heard: subscriber.Heard
    adapter: bundles.Bundle
    gguf: bundles.Bundle
    receipt: billing_pb2.Receipt


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, in a folder with a space in its name."""
    state = tmp_path_factory.mktemp("a stack", numbered=True)
    made = Stack(state=state)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    """A client of the local project."""
    with Client(stack.credentials) as made:
        yield made


@pytest.fixture(scope="session")
def habit(client: Client) -> str:
    """Name of the demo's dataset in the project."""
    taught = lesson.read_lesson()
    client.datasets.push(taught.dataset, dataset_id=lesson.DATASET_ID)
    return lesson.DATASET_ID


@pytest.fixture(scope="session")
def taught(client: Client, stack: Stack, habit: str) -> Taught:
    """The demo's run, followed to its end in both ways."""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    assert list(spec.datasets) == [habit]
    with subscriber.listening(client.credentials.nats_url, project="local") as heard:
        run = client.runs.submit(spec)
        told = tuple(client.runs.watch(run.name))
        heard.wait_for(run.name, count=len(told))
    run = client.runs.get(run.name)
    assert run.state == run_pb2.RUN_STATE_COMPLETED, run.fault
    folder = stack.state / "downloads"
    shutil.rmtree(folder, ignore_errors=True)
    adapter, gguf = bundles.pull(client, run.name, Path(folder))
    return Taught(
        run=run,
        told=told,
        heard=heard,
        adapter=adapter,
        gguf=gguf,
        receipt=settled(client, run.name),
    )
