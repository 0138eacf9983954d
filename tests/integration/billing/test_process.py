"""Billing as a process of its own: started from the environment, killed while money moves."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.client import connect
from chassis.identity import service_token
from deploy.local.process import ProcessSpec
from tests.integration.billing.conftest import Desk
from tests.integration.billing.test_event_stream import publish
from tests.integration.billing.test_ledger_rpc import RATE, grant_request, hold_request
from tests.support.desk import SIGNING_KEY
from tests.support.nats import NatsServer
from tests.support.process import TestProcess
from tests.support.run_events import RunStory
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.run.v1 import run_pb2

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[3]
PORT_SECONDS = 2.0
RUNS = 25
KILLS = 5


def environment(desk: Desk, server: NatsServer, *, database_url: str, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "TUNESMITH_LISTEN": f"127.0.0.1:{port}",
        "TUNESMITH_SIGNING_KEY": SIGNING_KEY,
        "TUNESMITH_DATABASE_URL": database_url,
        "TUNESMITH_NATS_URL": server.url("billing"),
        "TUNESMITH_SCHEDULER_ADDR": desk.scheduler_address,
        "TUNESMITH_CATALOG_DIR": str(REPOSITORY / "deploy" / "catalog"),
    }


@pytest.fixture
async def process(
    desk: Desk, nats_server: NatsServer, database_url: str, tmp_path: Path, unused_tcp_port: int
) -> AsyncIterator[TestProcess]:
    """Billing's process on the same database as the desk."""

    async def is_ready() -> bool:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PORT_SECONDS)
            except grpc.aio.AioRpcError:
                return False
            serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
            return serving

    spec = ProcessSpec(
        name="billing",
        level=1,
        argv=(sys.executable, "-m", "billing"),
        environment=environment(desk, nats_server, database_url=database_url, port=unused_tcp_port),
        folder=tmp_path,
        log=tmp_path / "billing.log",
        is_ready=is_ready,
    )
    process = TestProcess(spec)
    await process.start_again()
    yield process
    process.stop()


async def settled_count(pool: asyncpg.Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM bills WHERE state = 'settled'")
    return count


async def consumed(pool: asyncpg.Pool, count: int) -> None:
    """Returns once so many events are in the inbox."""
    seen = "SELECT coalesce(sum(upper(part) - lower(part)), 0) FROM inbox, unnest(seen) AS part"
    async with asyncio.timeout(40):
        while await pool.fetchval(seen) < count:
            await asyncio.sleep(0.01)


async def test_killed_again_and_again_while_runs_end_every_run_is_settled_once(
    desk: Desk, nats_server: NatsServer, process: TestProcess
) -> None:
    """A2: kill -9 between consuming, committing and acknowledging; nothing is charged twice."""
    await desk.operator.GrantCredits(grant_request(1000))
    stories = []
    for number in range(RUNS):
        await desk.service.HoldFunds(hold_request(f"run-{number}"))
        story = RunStory(f"projects/acme/runs/run-{number}").trains(200)
        stories.append(story.ends(run_pb2.RUN_STATE_FAILED, code="RUNTIME_GPU_OOM"))
    events = [event for each in zip(*(s.events for s in stories), strict=True) for event in each]
    desk.log.events = events
    publishing = asyncio.create_task(publish(nats_server, events, copies=2))
    for number in range(1, KILLS + 1):
        # Among the events wherever the machine is slow or fast, not at a moment.
        await consumed(desk.pool, len(events) * number // (KILLS + 1))
        process.kill()
        await process.start_again()
    await publishing
    async with asyncio.timeout(40):
        while await settled_count(desk.pool) < RUNS:
            await asyncio.sleep(0.05)
    rows = await desk.pool.fetch("SELECT run, kind, amount_micros FROM entries WHERE run <> ''")
    assert len(rows) == len({(row["run"], row["kind"]) for row in rows}) == 4 * RUNS
    charged = {row["amount_micros"] for row in rows if row["kind"] in {"capture", "refund"}}
    assert charged == {3 * RATE}
    await desk.check_books()


async def test_requests_that_meet_a_restart_are_answered_once(
    desk: Desk, process: TestProcess, unused_tcp_port: int
) -> None:
    """Attack 15: callers retry through a kill -9; each hold is made once."""
    await desk.operator.GrantCredits(grant_request(1000))
    channel = connect(f"127.0.0.1:{unused_tcp_port}", token=service_token(SIGNING_KEY, "scheduler"))
    stub = billing_service_pb2_grpc.BillingServiceStub(channel)

    async def insist(request: billing_service_pb2.HoldFundsRequest) -> Message:
        while True:
            try:
                response: Message = await stub.HoldFunds(request)
            except Exception:  # noqa: BLE001 - whatever the kill made of the call
                await asyncio.sleep(0.05)
            else:
                return response

    async with asyncio.timeout(40):
        holding = [
            asyncio.create_task(insist(hold_request(f"run-{number}"))) for number in range(200)
        ]
        await asyncio.sleep(0.05)
        process.kill()
        await process.start_again()
        await asyncio.gather(*holding)
    await channel.close()
    held = await desk.pool.fetchval(
        "SELECT balance_micros FROM accounts WHERE account = 'projects/acme/held'"
    )
    assert held == 200 * 60 * RATE
    await desk.check_books()
