"""The exporter process: health, the lease loop, and a working child kept ready."""

import asyncio
import os

from chassis import server, telemetry
from chassis.client import connect
from chassis.config import describe, load
from chassis.tls import Tls
from chassis.worker import Worker
from exporter import node
from exporter.config import Config
from exporter.worker import Exporter

log = telemetry.logger(__name__)


async def main() -> None:
    """Lease and export until a stop is requested."""
    telemetry.start("exporter")
    config = load(Config, os.environ)
    log.info("starting", config=describe(config))
    tls = Tls.load(certificate=config.tls_cert, key=config.tls_key, authority=config.tls_ca)
    channel = connect(config.scheduler_addr, token=lambda: config.node_token, tls=tls)
    exporter = Exporter(config)

    async def lease(stop: asyncio.Event) -> None:
        await exporter.ready()
        described = node.describe(name=config.node_name, tier=config.node_tier)
        await Worker(channel, described, exporter.handle, stop).run()

    try:
        await server.run_server(
            service="exporter",
            listen=config.listen,
            tls=tls,
            signing_key=None,
            register=lambda _: (),
            background=[lease],
        )
    finally:
        await exporter.close()
        await channel.close()


if __name__ == "__main__":
    server.main(main)
