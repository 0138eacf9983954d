"""nats-server of one stack: its configuration with users and permissions, and its process.

Every acknowledged message is on disk (`sync_interval: always`); there is no websocket, no cluster
port and no monitoring port, and every connection needs a password.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from deploy.local import places
from deploy.local.layout import Layout
from deploy.local.process import MARK, ProcessSpec

CONNECT_SECONDS = 2.0
STOP_SECONDS = 10.0
RUN_STREAM = "TUNESMITH_RUN"
TEMPLATE = Path(__file__).resolve().parents[1] / "nats" / "nats-server.conf"


def prepare(layout: Layout) -> Path:
    """Write the configuration of this start and return its path."""
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        listen=f"127.0.0.1:{layout.ports['nats']}",
        store=json.dumps(str(layout.state / "nats")),
        server_name=f"tunesmith-{layout.stack_id}",
        # It listens on loopback.
        tls="",
        **{name: json.dumps(layout.secrets[name]) for name in layout.secrets if "_nats" in name},
    )
    path = layout.state / "nats-server.conf"
    places.write_whole(path, text, mode=0o600)
    return path


def spec(layout: Layout, binary: Path, configuration: Path) -> ProcessSpec:
    """The process for the supervisor."""
    port = layout.ports["nats"]

    async def is_ready() -> bool:
        return await greets(port)

    return ProcessSpec(
        name="nats-server",
        level=0,
        argv=(str(binary), "--config", str(configuration)),
        environment=_environment(layout),
        folder=layout.state,
        log=layout.logs / "nats-server.log",
        is_ready=is_ready,
        port=port,
        stop_seconds=STOP_SECONDS,
    )


def url(layout: Layout, user: str) -> str:
    """The URL for the connections of a service."""
    password = layout.secrets[f"{user}_nats"]
    return f"nats://{user}:{password}@127.0.0.1:{layout.ports['nats']}"


async def greets(port: int) -> bool:
    """Whether a server on this port sends the INFO line that every client expects."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return line.startswith(b"INFO ") and b'"jetstream":true' in line


def _environment(layout: Layout) -> Mapping[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(layout.state), MARK: layout.stack_id}
