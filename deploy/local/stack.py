"""A whole stack: start, status and stop."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc

from chassis.identity import Role
from deploy.local import layout as layouts
from deploy.local import nats, places, postgres, process, services, supervisor
from deploy.local.layout import Layout
from deploy.local.places import Parts
from deploy.local.refusal import SetupRefused
from deploy.local.supervisor import Supervisor
from tunesmith import credentials
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc

# Each process imports its modules and connects again, on two slow cores.
UP_SECONDS = 240.0
DOWN_SECONDS = 75.0
SWEEP_SECONDS = 10.0
POLL_SECONDS = 0.1
CALL_SECONDS = 10.0
# Welcome credits of a new stack: 100, at a million micro-credits each.
GRANT_MICROS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One process, from the supervisor's last report."""

    name: str
    port: int | None
    state: str
    pid: int | None
    restarts: int
    since: float
    last_exit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """The state of a stack.

    Attributes:
        running: a supervisor holds the folder.
        ready: every process has been ready once and the stack is usable.
        failure: why the last start failed, or None.
    """

    state: Path
    running: bool
    ready: bool
    failure: str | None
    supervisor_pid: int | None
    processes: tuple[ProcessState, ...]


def serve(state: Path) -> int:
    """Supervise this state folder until a stop is requested; return the exit code.

    Raises:
        SetupRefused: a requirement is missing, or another supervisor runs.
    """
    layouts.require_supported()
    parts = require_parts()
    layout = layouts.open_layout(state)
    lock = supervisor.hold_lock(layout.lock)
    process.sweep(layout.stack_id, layout.pids, wait_seconds=SWEEP_SECONDS)
    layout.status.unlink(missing_ok=True)
    install = Path(parts.postgres)
    postgres.prepare(layout, install)
    configuration = nats.prepare(layout)
    specs = [
        postgres.spec(layout, install),
        nats.spec(layout, Path(parts.nats_server), configuration),
        *services.specs(layout, parts, os.environ),
    ]

    async def after_level(level: int) -> None:
        if level == 0:
            await _provision(layout)
        elif level == 1:
            write_credentials(layout)
            await _welcome(layout)

    async def keep() -> int:
        return await supervisor.supervise(
            Supervisor(specs, status=layout.status, pids=layout.pids, after_level=after_level)
        )

    try:
        return asyncio.run(keep())
    finally:
        lock.close()


def require_parts() -> Parts:
    """The record of the bootstrap.

    Raises:
        SetupRefused: it has not run in this checkout.
    """
    parts = places.read_parts()
    if parts is None:
        raise SetupRefused("This checkout is not set up.", next_step="Run 'make setup' first.")
    for path in (parts.nats_server, parts.postgres, parts.llama_vendor):
        if not Path(path).exists():
            raise SetupRefused(f"{path} has disappeared.", next_step="Run 'make setup' again.")
    return parts


def up(state: Path, *, report: Callable[[StackState], None]) -> StackState:
    """Start a supervisor of its own and wait until the stack is ready.

    Args:
        report: called with the state periodically, for a progress line.
    Raises:
        SetupRefused: it did not become ready; everything that was started has ended again.
    """
    require_parts()
    layout = layouts.open_layout(state)
    if layouts.stack_is_running(layout.state):
        return _wait_until_ready(layout, None, report)
    log = layout.logs / "supervisor.log"
    supervisor.rotate(log)
    layout.status.unlink(missing_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.local.stack", "--state", str(layout.state)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=layout.state,
        )
    return _wait_until_ready(layout, child, report)


def down(state: Path) -> list[str]:
    """End the stack and its remaining processes; return the names of those that were killed.

    Works also right after its supervisor was killed, and when no stack runs.

    Raises:
        SetupRefused: the supervisor did not end.
    """
    state = state.expanduser().absolute()
    if not (state / "secrets.json").is_file():
        return []
    layout = layouts.open_layout(state)
    now = status(state)
    deadline = time.monotonic() + DOWN_SECONDS
    if now.running and now.supervisor_pid is not None:
        process.signal_one(now.supervisor_pid, signal.SIGTERM)
    while layouts.stack_is_running(state):
        if time.monotonic() > deadline:
            raise SetupRefused(
                f"The supervisor (process {now.supervisor_pid}) did not end.",
                next_step="Kill it and run 'tunesmith down' again.",
            )
        time.sleep(POLL_SECONDS)
    return process.sweep(layout.stack_id, layout.pids, wait_seconds=SWEEP_SECONDS)


def status(state: Path) -> StackState:
    """The state of a folder's stack; without a folder the stack is down."""
    state = state.expanduser().absolute()
    try:
        record = json.loads((state / "status.json").read_text(encoding="utf-8"))
        processes = tuple(ProcessState(**entry) for entry in record["processes"])
        failure, ready, pid = record["failure"], record["ready"], record["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        failure, ready, pid, processes = None, False, None, ()
    running = state.is_dir() and layouts.stack_is_running(state)
    return StackState(
        state=state,
        running=running,
        ready=running and ready,
        failure=failure,
        supervisor_pid=pid if running else None,
        processes=processes if running else (),
    )


def write_credentials(layout: Layout) -> None:
    """Write the credentials of this stack's first user for the SDK and the CLI."""
    credentials.save(
        credentials.Credentials(
            address=services.address(layout, "gateway"),
            http_url=services.http_url(layout),
            project=services.PROJECT,
            token=services.token(
                layout, Role.PROJECT, f"user-{services.PROJECT}", project=services.PROJECT
            ),
            operator_token=services.token(layout, Role.OPERATOR, "local-operator"),
            nats_url=nats.url(layout, "events"),
            nats_user="events",
        ),
        layout.credentials,
    )


def _wait_until_ready(
    layout: Layout, child: subprocess.Popen[bytes] | None, report: Callable[[StackState], None]
) -> StackState:
    deadline = time.monotonic() + UP_SECONDS
    while True:
        now = status(layout.state)
        report(now)
        if now.ready:
            return now
        ended = child is not None and child.poll() is not None
        # One of two starts at once finds the other's supervisor in place; both wait for that one.
        if not now.running and (ended or child is None):
            log = layout.logs / "supervisor.log"
            raise SetupRefused(
                now.failure or "The supervisor ended before the stack was ready.",
                next_step="" if now.failure else f"Its log is {log}.",
                detail="" if now.failure else supervisor.last_lines(log),
            )
        if time.monotonic() > deadline:
            down(layout.state)
            waiting = [entry.name for entry in now.processes if entry.state != "ready"]
            raise SetupRefused(
                f"The stack was not ready within {UP_SECONDS:.0f} s; waiting for "
                f"{', '.join(waiting)}.",
                next_step=f"The logs are in {layout.logs}.",
            )
        time.sleep(POLL_SECONDS)


async def _provision(layout: Layout) -> None:
    try:
        await postgres.provision(layout)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise SetupRefused(
            f"Postgres refused its roles and schemas: {error}",
            next_step=f"Its log is {layout.logs / 'postgres.log'}.",
        ) from error


async def _welcome(layout: Layout) -> None:
    """Give the local project its plan and its first credits; repeating it changes nothing."""
    token = services.token(layout, Role.OPERATOR, "local-operator")
    metadata = (("authorization", f"Bearer {token}"),)
    parent = f"projects/{services.PROJECT}"
    async with grpc.aio.insecure_channel(services.address(layout, "billing")) as channel:
        billing = billing_service_pb2_grpc.BillingServiceStub(channel)
        try:
            await billing.SetPlan(
                billing_service_pb2.SetPlanRequest(
                    request_id="local-initial-plan", parent=parent, plan="local"
                ),
                metadata=metadata,
                timeout=CALL_SECONDS,
            )
            await billing.GrantCredits(
                billing_service_pb2.GrantCreditsRequest(
                    request_id="local-initial-grant",
                    parent=parent,
                    amount_micros=GRANT_MICROS,
                    reason="Welcome credits of the local stack",
                ),
                metadata=metadata,
                timeout=CALL_SECONDS,
            )
        except grpc.RpcError as error:
            raise SetupRefused(
                f"billing refused the welcome credits: {error}",
                next_step=f"Its log is {layout.logs / 'billing.log'}.",
            ) from error


def main(arguments: Sequence[str]) -> int:
    """Start one stack and supervise it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.stack")
    parser.add_argument("--state", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    try:
        return serve(chosen.state)
    except SetupRefused as refused:
        print(f"supervisor: {refused}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
