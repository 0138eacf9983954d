"""The trainer process: health, the lease loop, and a training child kept ready."""

import asyncio
import os

from chassis import server, telemetry
from chassis.client import connect
from chassis.config import describe, load
from chassis.tls import Tls
from chassis.worker import Worker
from trainer import node
from trainer.config import Config
from trainer.worker import Trainer

log = telemetry.logger(__name__)


async def main() -> None:
    """Lease and train until a stop is requested."""
    telemetry.start("trainer")
    config = load(Config, os.environ)
    log.info("starting", config=describe(config))
    tls = Tls.load(certificate=config.tls_cert, key=config.tls_key, authority=config.tls_ca)
    channel = connect(config.scheduler_addr, token=lambda: config.node_token, tls=tls)
    trainer = Trainer(config)

    async def lease(stop: asyncio.Event) -> None:
        await trainer.ready()
        described = node.describe(
            name=config.node_name, tier=config.node_tier, capabilities=trainer.capabilities
        )
        worker = Worker(
            channel,
            described,
            trainer.handle,
            warm_models=lambda: trainer.warm_models,
            unfit_reason=lambda: trainer.unfit_reason,
        )
        await worker.run(stop)

    try:
        with node.alone_in(config.work_dir):
            await server.run_server(
                service="trainer",
                listen=config.listen,
                tls=tls,
                signing_key=None,
                register=lambda _: (),
                background=[lease],
            )
    finally:
        await trainer.close()
        await channel.close()


if __name__ == "__main__":
    server.main(main)
