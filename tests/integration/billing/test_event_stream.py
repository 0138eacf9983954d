"""Billing behind the real stream: nats-server, and the scheduler's log to catch up from."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.js.api import StreamConfig

from billing.events import DURABLE, STREAM, SUBJECTS, RunEvents
from billing.store import Store
from chassis.client import connect
from chassis.consumer import EventConsumer, scheduler_pages
from chassis.identity import service_token
from tests.integration.billing.conftest import Desk
from tests.integration.billing.test_ledger_rpc import RATE, entries, grant_request, hold_request
from tests.support.desk import SIGNING_KEY
from tests.support.nats import NatsServer
from tests.support.run_events import RunStory
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.run.v1 import run_pb2

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 20.0


class DyingEvents(RunEvents):
    """A handler whose process dies between its commit and the acknowledgement, once an event."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.died: set[str] = set()

    async def handle(self, event: event_pb2.Event) -> None:
        await super().handle(event)
        if event.event_id not in self.died:
            self.died.add(event.event_id)
            raise ConnectionResetError("died between commit and ack")


@asynccontextmanager
async def consuming(desk: Desk, server: NatsServer, events: RunEvents) -> AsyncIterator[None]:
    """Billing's consumer as its process runs it."""
    scheduler = connect(desk.scheduler_address, token=service_token(SIGNING_KEY, "billing"))
    consumer = EventConsumer(
        nats_url=server.url("billing"),
        stream=STREAM,
        durable=DURABLE,
        subjects=SUBJECTS,
        handle=events.handle,
        catch_up=scheduler_pages(scheduler),
        load_cursor=events.load_cursor,
        save_cursor=events.save_cursor,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(consumer.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE_SECONDS)
        await scheduler.close()


async def publish(server: NatsServer, events: list[event_pb2.Event], *, copies: int = 1) -> None:
    """Publishes events as the scheduler's outbox does, some of them more than once."""
    client = await nats.connect(server.url("scheduler"))
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name=STREAM, subjects=list(SUBJECTS)))
    for event in events:
        _, project, _, run = event.run.split("/")
        subject = f"tunesmith.run.v1.{project}.{run}.{event.type}"
        for copy in range(copies):
            headers = {"Nats-Msg-Id": f"{event.event_id}/{copy}"}
            await stream.publish(subject, event.SerializeToString(), headers=headers)
    await client.close()


async def settled(desk: Desk, run: str) -> billing_pb2.Receipt:
    """Waits until a run is settled."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            response = await desk.user.GetReceipt(billing_service_pb2.GetReceiptRequest(run=run))
            if response.receipt.settled:
                receipt: billing_pb2.Receipt = response.receipt
                return receipt
            await asyncio.sleep(0.05)


async def seen(desk: Desk) -> list[int]:
    """The sequence numbers that the inbox has."""
    row = await desk.pool.fetchval(
        "SELECT array(SELECT generate_series(lower(each), upper(each) - 1) "
        "FROM inbox, unnest(seen) AS each)"
    )
    return list(row)


async def prepared(desk: Desk, run: str) -> RunStory:
    await desk.operator.GrantCredits(grant_request(100))
    await desk.service.HoldFunds(hold_request(run))
    story = RunStory(f"projects/acme/runs/{run}").trains(600)
    return story.ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM")


async def test_a_failed_run_is_refunded_seconds_after_its_last_event(
    desk: Desk, nats_server: NatsServer
) -> None:
    """000-03, A2: the refund posts within seconds of the event, through the real stream."""
    story = await prepared(desk, "run-1")
    desk.log.events = story.events
    async with consuming(desk, nats_server, desk.events):
        await publish(nats_server, story.events)
        started = asyncio.get_running_loop().time()
        receipt = await settled(desk, story.run)
        assert asyncio.get_running_loop().time() - started < 5
    assert receipt.refunded.amount_micros == receipt.charged.amount_micros == 10 * RATE
    await desk.check_books()


async def test_exports_of_stored_adapters_cost_nothing_and_keep_nobody_waiting(
    desk: Desk, nats_server: NatsServer
) -> None:
    """A5: they stand in the same log before and after a run; the run settles, the cursor moves."""
    story = await prepared(desk, "run-1")
    exports = [
        event_pb2.Event(
            event_id=f"export-1-{number}",
            run="projects/acme/exports/export-1",
            sequence=number,
            type="export_changed",
            export_changed=event_pb2.ExportChanged(),
        )
        for number in (1, 2)
    ]
    desk.log.events = [exports[0], *story.events, exports[1]]
    async with consuming(desk, nats_server, desk.events):
        await publish(nats_server, desk.log.events)
        receipt = await settled(desk, story.run)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await desk.events.load_cursor():
                await asyncio.sleep(0.05)
    assert receipt.charged.amount_micros == 10 * RATE
    await desk.check_books()


async def test_every_message_delivered_twice_charges_once(
    desk: Desk, nats_server: NatsServer
) -> None:
    story = await prepared(desk, "run-1")
    desk.log.events = story.events
    async with consuming(desk, nats_server, desk.events):
        await publish(nats_server, story.events, copies=2)
        await settled(desk, story.run)
    assert len(await entries(desk, run=story.run)) == 4
    await desk.check_books()


async def test_dying_between_commit_and_acknowledgement_of_every_event_charges_once(
    desk: Desk, nats_server: NatsServer
) -> None:
    """A2: what was committed but not acknowledged comes again and changes nothing."""
    story = await prepared(desk, "run-1")
    desk.log.events = story.events
    events = DyingEvents(desk.store)
    async with consuming(desk, nats_server, events):
        await publish(nats_server, story.events)
        await settled(desk, story.run)
    assert len(events.died) == len(story.events)
    assert len(await entries(desk, run=story.run)) == 4
    await desk.check_books()


async def test_without_the_stream_the_log_alone_settles(
    desk: Desk, nats_server: NatsServer
) -> None:
    """Deleting the whole JetStream store loses nothing: the events come by RPC."""
    story = await prepared(desk, "run-1")
    nats_server.process.kill()
    desk.log.events = story.events
    async with consuming(desk, nats_server, desk.events):
        await settled(desk, story.run)
    assert len(await entries(desk, run=story.run)) == 4


async def test_a_restart_goes_on_where_it_was(desk: Desk, nats_server: NatsServer) -> None:
    story = await prepared(desk, "run-1")
    half = len(story.events) // 2
    desk.log.events = story.events[:half]
    async with consuming(desk, nats_server, desk.events):
        await publish(nats_server, story.events[:half])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(await seen(desk)) < half:
                await asyncio.sleep(0.05)
    desk.log.events = story.events
    await publish(nats_server, story.events[half:])
    async with consuming(desk, nats_server, RunEvents(desk.store)):
        await settled(desk, story.run)
    assert len(await entries(desk, run=story.run)) == 4
    await desk.check_books()
