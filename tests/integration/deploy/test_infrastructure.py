"""Real Postgres and real nats-server, as the stack runs them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import nats
import nats.errors
import pytest
from nats.js.api import StreamConfig

from deploy.local import layout as layouts
from deploy.local import nats as bus
from deploy.local import places, postgres, process
from deploy.local.layout import Layout
from deploy.local.supervisor import Supervisor

pytestmark = pytest.mark.integration

WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The two servers of a fresh state folder."""

    layout: Layout

    def process(self, name: str) -> dict[str, Any]:
        """What the supervisor says about one of them."""
        record = json.loads(self.layout.status.read_text(encoding="utf-8"))
        return next(entry for entry in record["processes"] if entry["name"] == name)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait, bounded, for something that a server does."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():
                await asyncio.sleep(0.02)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Started in a folder with a space in its path, ended after the test."""
    parts = places.read_parts()
    assert parts is not None, "run make setup"
    layout = layouts.open_layout(tmp_path / "state with a space")
    postgres.prepare(layout, Path(parts.postgres))
    configuration = bus.prepare(layout)

    async def after_level(_: int) -> None:
        await postgres.provision(layout)

    supervisor = Supervisor(
        [
            postgres.spec(layout, Path(parts.postgres)),
            bus.spec(layout, Path(parts.nats_server), configuration),
        ],
        status=layout.status,
        pids=layout.pids,
        after_level=after_level,
    )
    task = asyncio.create_task(supervisor.run())
    started = Running(layout=layout)
    try:
        await started.until(lambda: task.done() or _is_ready(layout))
        assert not task.done(), layout.status.read_text(encoding="utf-8")
        yield started
    finally:
        supervisor.stop()
        assert await task == 0
        assert not process.marked(layout.stack_id)
        # Postgres' home lies elsewhere when root runs the test.
        postgres.forget(layout)


def _is_ready(layout: Layout) -> bool:
    try:
        return bool(json.loads(layout.status.read_text(encoding="utf-8"))["ready"])
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("role", postgres.ROLES)
async def test_a_role_has_its_own_schema_and_reads_no_other(running: Running, role: str) -> None:
    """architecture.md: one schema and one role per owning service; no service reads another's."""
    for owner in postgres.ROLES:
        connection = await asyncpg.connect(postgres.database_url(running.layout, owner))
        await connection.execute("CREATE TABLE IF NOT EXISTS secret (word text)")
        await connection.close()
    connection = await asyncpg.connect(postgres.database_url(running.layout, role))
    try:
        assert await connection.fetchval("SELECT current_schema()") == role
        for other in set(postgres.ROLES) - {role}:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT * FROM {other}.secret")  # noqa: S608 (our own role names)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE public.mine (x int)")
    finally:
        await connection.close()


async def test_the_database_lets_nobody_in_without_the_right_password(running: Running) -> None:
    """Any local account can reach the port, so the port must ask."""
    url = postgres.database_url(running.layout, "hub")
    address = url.partition("@")[2]
    refused = (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
    )
    for wrong in (
        url.replace("hub:", "hub:x"),
        f"postgresql://postgres@{address}",
        f"postgresql://postgres:{running.layout.secrets['hub_db']}@{address}",
        url.replace("/tunesmith", "/postgres"),
    ):
        with pytest.raises(refused):
            await asyncpg.connect(wrong)


async def test_the_bus_writes_through_and_asks_for_passwords(running: Running) -> None:
    """attacks.md 9: sync_always is what the running server says, not only its file."""
    system = await nats.connect(bus.url(running.layout, "system"))
    reply = await system.request("$SYS.REQ.SERVER.PING.JSZ", b'{"config": true}', timeout=5)
    await system.close()
    assert json.loads(reply.data)["data"]["config"]["sync_always"] is True
    for login in ("", "events:wrong@"):
        with pytest.raises(nats.errors.Error):
            await nats.connect(
                f"nats://{login}127.0.0.1:{running.layout.ports['nats']}",
                allow_reconnect=False,
                max_reconnect_attempts=0,
                error_cb=_silent,
            )


async def test_a_reader_reads_events_and_can_neither_write_nor_disturb_billing(
    running: Running,
) -> None:
    """attacks.md 9: per-user subjects, proven at the running server."""
    layout = running.layout
    scheduler, billing, reader = [
        await nats.connect(bus.url(layout, user), error_cb=_silent)
        for user in ("scheduler", "billing", "events")
    ]
    try:
        await scheduler.jetstream().add_stream(
            StreamConfig(name=bus.RUN_STREAM, subjects=["tunesmith.run.v1.>"])
        )
        subject = "tunesmith.run.v1.local.r-1.submitted"
        await scheduler.jetstream().publish(subject, b"first")
        durable = await billing.jetstream().pull_subscribe(
            "tunesmith.run.v1.>", durable="billing", stream=bus.RUN_STREAM
        )
        (message,) = await durable.fetch(1, timeout=5)
        await message.ack_sync()
        ordered = await reader.jetstream().subscribe("tunesmith.run.v1.>", ordered_consumer=True)
        assert (await ordered.next_msg(timeout=5)).data == b"first"
        for attempt in (
            lambda: reader.jetstream().publish(subject, b"forged", timeout=0.5),
            lambda: billing.jetstream().publish(subject, b"forged", timeout=0.5),
            lambda: reader.jsm(timeout=0.5).delete_consumer(bus.RUN_STREAM, "billing"),
            lambda: reader.jsm(timeout=0.5).delete_stream(bus.RUN_STREAM),
        ):
            with pytest.raises((TimeoutError, nats.errors.TimeoutError)):
                await attempt()
        info = await scheduler.jetstream().stream_info(bus.RUN_STREAM)
        assert (info.state.messages, info.state.consumer_count) == (1, 2)
    finally:
        for connection in (scheduler, billing, reader):
            await connection.close()


@pytest.mark.parametrize("name", ["postgres", "nats-server"])
async def test_a_killed_server_comes_back_with_what_it_acknowledged(
    running: Running, name: str
) -> None:
    """kill -9 loses nothing that was acknowledged."""
    layout = running.layout
    url = postgres.database_url(layout, "billing")
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (42)")
    await connection.close()
    scheduler = await nats.connect(bus.url(layout, "scheduler"), error_cb=_silent)
    await scheduler.jetstream().add_stream(
        StreamConfig(name=bus.RUN_STREAM, subjects=["tunesmith.run.v1.>"])
    )
    await scheduler.jetstream().publish("tunesmith.run.v1.local.r-1.submitted", b"kept")
    await scheduler.close()
    os.kill(running.process(name)["pid"], signal.SIGKILL)
    await running.until(
        lambda: running.process(name)["restarts"] == 1 and running.process(name)["state"] == "ready"
    )
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT n FROM kept") == 42
    await connection.close()
    again = await nats.connect(bus.url(layout, "scheduler"), error_cb=_silent)
    assert (await again.jetstream().stream_info(bus.RUN_STREAM)).state.messages == 1
    await again.close()


async def _silent(_: Exception) -> None:
    """Refusals are what the tests look for; the client would log them."""
