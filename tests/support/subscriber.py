"""A subscriber as anybody could write it: nats-py and the published contracts, nothing of ours.

It runs in a thread of its own, so that tests can go on while it listens.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from tunesmith.api.event.v1 import event_pb2

SUBJECT = "tunesmith.run.v1.{project}.{run}.*"
STREAM = "TUNESMITH_RUN"
CONNECT_SECONDS = 10
HEARD_SECONDS = 30
QUIET_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Heard:
    """What came in, in the order of arrival.

    Attributes:
        subjects: subject of each message.
        message_ids: its `Nats-Msg-Id`.
    """

    events: list[event_pb2.Event] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    message_ids: list[str] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def of(self, run: str) -> list[event_pb2.Event]:
        """Events of one run."""
        return [event for event in self.events if event.run == run]

    def wait_for(self, run: str, *, count: int) -> None:
        """Wait until so many events of a run have come."""
        with self.came:
            if not self.came.wait_for(lambda: len(self.of(run)) >= count, HEARD_SECONDS):
                raise TimeoutError(f"{len(self.of(run))} of {count} events of {run} were heard")


@contextmanager
def listening(nats_url: str, *, project: str) -> Iterator[Heard]:
    """Listen to all events of a project from now on."""
    heard, stop, ready = Heard(), threading.Event(), threading.Event()

    def turn() -> None:
        asyncio.run(_listen(nats_url, project, heard, stop, ready))

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    if not ready.wait(CONNECT_SECONDS):
        raise TimeoutError("nats-server does not answer")
    try:
        yield heard
    finally:
        stop.set()
        thread.join(CONNECT_SECONDS)


def read_stored(nats_url: str, *, project: str, run: str) -> Heard:
    """Everything that the stream holds of one run, from the first message on."""
    return asyncio.run(_read_stored(nats_url, project, run))


async def _listen(
    nats_url: str, project: str, heard: Heard, stop: threading.Event, ready: threading.Event
) -> None:
    connection = await nats.connect(nats_url, connect_timeout=CONNECT_SECONDS)
    try:

        async def note(message: Msg) -> None:
            _note(heard, message)

        await connection.jetstream().subscribe(
            SUBJECT.format(project=project, run="*"),
            stream=STREAM,
            ordered_consumer=True,
            cb=note,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.NEW),
        )
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def _read_stored(nats_url: str, project: str, run: str) -> Heard:
    heard = Heard()
    connection = await nats.connect(nats_url, connect_timeout=CONNECT_SECONDS)
    try:
        subject = SUBJECT.format(project=project, run=run.rpartition("/")[2])
        subscription = await connection.jetstream().subscribe(
            subject, stream=STREAM, ordered_consumer=True
        )
        while True:
            try:
                _note(heard, await subscription.next_msg(timeout=QUIET_SECONDS))
            except TimeoutError:
                return heard
    finally:
        await connection.close()


def _note(heard: Heard, message: Msg) -> None:
    with heard.came:
        heard.events.append(event_pb2.Event.FromString(message.data))
        heard.subjects.append(message.subject)
        heard.message_ids.append((message.headers or {}).get("Nats-Msg-Id", ""))
        heard.came.notify_all()
