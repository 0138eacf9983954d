"""Consume events: live from JetStream, and from the scheduler's event log when some may be missing.

Live events are fast but may be lost, repeated or reordered; the log is complete and in order. So
the log is read at the start, after every interruption, when a run has a gap, and periodically;
events that arrive both ways are recognised by their number within the run. The handler keeps an
inbox, written in the transaction of its effect, as an event may be delivered again after a crash.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from chassis import jetstream, postgres, telemetry
from chassis.links import refuse_open_nats
from lexicon.faults import Fault
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc

log = telemetry.logger(__name__)

PAGE_EVENTS = 500
PAGE_SECONDS = 10.0
FETCH_EVENTS = 64
FETCH_SECONDS = 1.0
ACK_WAIT_SECONDS = 60.0
CATCH_UP_SECONDS = 30.0
# While live events are interrupted, reading the log must keep refunds within seconds.
CATCH_UP_SECONDS_ALONE = 2.0
# Delay before a live event is delivered again, after an outage or a failure of its handler.
OUTAGE_SECONDS = 2.0
FAILED_SECONDS = 20.0
RETRY_SECONDS_MAX = 3.0
RUNS_REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events of the log and the cursor after them."""

    events: Sequence[event_pb2.Event]
    cursor: str


Handle = Callable[[event_pb2.Event], Awaitable[None]]
CatchUp = Callable[[str], AsyncIterator[EventPage]]


def scheduler_pages(channel: grpc.aio.Channel) -> CatchUp:
    """The log of all runs, by `EventService.ListEvents`: pages after a cursor until the end."""
    stub = event_service_pb2_grpc.EventServiceStub(channel)

    async def pages(cursor: str) -> AsyncIterator[EventPage]:
        while True:
            request = event_service_pb2.ListEventsRequest(
                run="-", page_size=PAGE_EVENTS, page_token=cursor
            )
            response = await stub.ListEvents(request, timeout=PAGE_SECONDS)
            if not response.events:
                return
            cursor = response.next_page_token
            yield EventPage(events=list(response.events), cursor=cursor)

    return pages


class EventConsumer:
    """Gives every event to a handler, at least once and in order within a run."""

    def __init__(
        self,
        *,
        nats_url: str,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        handle: Handle,
        catch_up: CatchUp,
        load_cursor: Callable[[], Awaitable[str]],
        save_cursor: Callable[[str], Awaitable[None]],
    ) -> None:
        """Store the settings; `run` connects.

        Args:
            nats_url: `nats://user:password@host:port`.
            durable: name of our consumer on the server.
            subjects: which events, for example `tunesmith.run.v1.>`.
            handle: applies an event, once: it keeps an inbox. After an exception the event is
                retried, and later events of the same run wait for it.
            catch_up: pages of the log after a cursor, as `scheduler_pages` gives them.
            load_cursor: reads the stored cursor, empty at first.
            save_cursor: stores it.
        """
        # Checked at construction, before the service accepts calls.
        refuse_open_nats(nats_url)
        self._nats_url = nats_url
        self._stream = stream
        self._subjects = list(subjects)
        self._durable = durable
        self._handle = handle
        self._catch_up = catch_up
        self._load_cursor = load_cursor
        self._save_cursor = save_cursor
        self._lock = asyncio.Lock()
        # Last number that was handled, by run; the least recently seen runs are dropped.
        self._handled: OrderedDict[str, int] = OrderedDict()
        self._live = False
        self._behind = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until a stop is requested; wait out outages of server, scheduler and database."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._follow_log(stop)),
                group.create_task(self._follow_stream(stop)),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def _follow_log(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._behind.clear()
            try:
                async with self._lock:
                    await self._read_log()
            except Exception as error:  # noqa: BLE001 - a room's handler or port; tried again.
                self._warn("catch-up failed", error)
            seconds = CATCH_UP_SECONDS if self._live else CATCH_UP_SECONDS_ALONE
            try:
                async with asyncio.timeout(seconds):
                    await self._behind.wait()
            except TimeoutError:
                continue

    async def _read_log(self) -> set[str]:
        """Handle everything after the cursor; return the runs whose handler failed.

        A failing run does not block the others, but the cursor stays before its event.
        """
        failed: set[str] = set()
        cursor = await self._load_cursor()
        async for page in self._catch_up(cursor):
            for event in page.events:
                if event.run not in failed and not await self._try_handle(event):
                    failed.add(event.run)
            if not failed:
                await self._save_cursor(page.cursor)
        return failed

    async def _try_handle(self, event: event_pb2.Event) -> bool:
        if event.sequence <= self._handled.get(event.run, 0):
            return True
        with telemetry.bind(run=event.run):
            try:
                with telemetry.span(
                    f"handle {event.type}", event.traceparent, sequence=event.sequence
                ):
                    await self._handle(event)
            except Exception as error:
                if _is_outage(error):
                    raise
                log.exception("event not handled", type=event.type, sequence=event.sequence)
                return False
        self._handled[event.run] = event.sequence
        self._handled.move_to_end(event.run)
        if len(self._handled) > RUNS_REMEMBERED_MAX:
            self._handled.popitem(last=False)
        return True

    async def _follow_stream(self, stop: asyncio.Event) -> None:
        wait_seconds = 0.1
        while not stop.is_set():
            try:
                await self._session(stop)
                wait_seconds = 0.1
            except jetstream.TROUBLE as error:
                self._warn("live events interrupted", error)
                wait_seconds = min(2 * wait_seconds, RETRY_SECONDS_MAX)
            finally:
                self._live = False
                # The log has the events of the meantime.
                self._behind.set()
            await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.0))

    async def _session(self, stop: asyncio.Event) -> None:
        closed = asyncio.Event()
        client = await jetstream.connect(self._nats_url, name=self._durable, on_closed=closed.set)
        try:
            stream = jetstream.context(client)
            if await jetstream.stream_info(stream, self._stream) is None:
                # The scheduler has not created the stream yet; use the log meanwhile.
                return
            await stream.add_consumer(self._stream, self._consumer_config())
            subscription = await stream.pull_subscribe_bind(
                durable=self._durable, stream=self._stream
            )
            self._live = True
            self._behind.set()
            while not stop.is_set() and not closed.is_set() and client.is_connected:
                await self._fetch(subscription)
        finally:
            await jetstream.close(client)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> None:
        try:
            messages = await subscription.fetch(FETCH_EVENTS, timeout=FETCH_SECONDS)
        except NatsTimeoutError:
            return
        for message in messages:
            async with self._lock:
                again_seconds = await self._receive(message)
            if again_seconds:
                await message.nak(delay=again_seconds)
            else:
                await message.ack()

    async def _receive(self, message: Msg) -> float:
        """Handle a live event, the log first where it is not the next of its run.

        Returns the seconds until its next delivery, 0 when it is done.
        """
        event = event_pb2.Event()
        try:
            event.ParseFromString(message.data)
        except DecodeError:
            # The log has the event; invalid bytes must not be delivered forever.
            log.exception("message is not an event", subject=message.subject)
            return 0
        try:
            handled = self._handled.get(event.run, 0)
            if event.sequence <= handled:
                return 0
            if event.sequence == handled + 1:
                return 0 if await self._try_handle(event) else FAILED_SECONDS
            # A gap, or a run from before our start. Reading the log handles every event that was
            # stored before this call, and published events are stored.
            return FAILED_SECONDS if event.run in await self._read_log() else 0
        except Exception as error:  # noqa: BLE001 - a room's handler or port; tried again.
            self._warn("event put back", error)
            return OUTAGE_SECONDS

    def _consumer_config(self) -> ConsumerConfig:
        filters = (
            ConsumerConfig(filter_subject=self._subjects[0])
            if len(self._subjects) == 1
            else ConsumerConfig(filter_subjects=self._subjects)
        )
        return filters.evolve(
            durable_name=self._durable,
            name=self._durable,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            deliver_policy=DeliverPolicy.ALL,
            max_deliver=-1,
        )

    def _warn(self, what: str, error: BaseException) -> None:
        if _is_outage(error) or isinstance(error, jetstream.TROUBLE):
            reason = f"{type(error).__name__}: {error}"
            log.warning(what, durable=self._durable, reason=reason)
        else:
            log.error(what, durable=self._durable, exc_info=error)


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, Fault):
        return error.row.grpc_status == "UNAVAILABLE"
    return postgres.is_outage(error)
