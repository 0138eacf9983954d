"""The process of the validator: `python -m validator`."""

import os
from collections.abc import Sequence

import grpc.aio

from chassis import config, telemetry
from chassis.client import connect
from chassis.identity import service_token
from chassis.server import main, run_server
from chassis.tls import Tls
from modelspec.catalog import load_catalog
from objects.modelhub import ModelHub
from tunesmith.api.validation.v1 import validation_service_pb2, validation_service_pb2_grpc
from validator.config import Config
from validator.encoding import Encoder
from validator.gathering import Gatherer
from validator.library import Library
from validator.service import ValidationService


async def run() -> None:
    """Serves the validator until a stop is requested."""
    telemetry.start("validator")
    settings = config.load(Config, os.environ)
    telemetry.logger(__name__).info("starting", **config.describe(settings))
    tls = Tls.load(certificate=settings.tls_cert, key=settings.tls_key, authority=settings.tls_ca)
    catalog = load_catalog(settings.catalog_dir)
    token = service_token(settings.signing_key, "validator")
    hub = connect(settings.hub_addr, token=token, tls=tls)
    billing = connect(settings.billing_addr, token=token, tls=tls)
    model_hub = ModelHub(
        settings.model_hub_url, settings.model_cache / "hub", settings.model_hub_token
    )
    gatherer = Gatherer(
        hub=hub,
        billing=billing,
        library=Library(
            hub, model_hub, cache=settings.model_cache, cache_bytes=settings.model_cache_bytes
        ),
        encoder=Encoder(),
        catalog=catalog,
    )
    service = ValidationService(gatherer, catalog)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        validation_service_pb2_grpc.add_ValidationServiceServicer_to_server(service, server)
        return [validation_service_pb2.DESCRIPTOR.services_by_name["ValidationService"].full_name]

    try:
        await run_server(
            service="validator",
            listen=settings.listen,
            tls=tls,
            signing_key=settings.signing_key,
            register=register,
        )
    finally:
        await hub.close()
        await billing.close()


if __name__ == "__main__":
    main(run)
