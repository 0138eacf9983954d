"""The hub's process: `python -m hub`."""

import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import grpc.aio

from chassis import config, postgres, telemetry
from chassis.client import connect
from chassis.identity import service_token
from chassis.server import main, run_server
from chassis.tls import Tls
from hub.answers import quota_by_plan
from hub.artifact_service import ArtifactService, ObjectService
from hub.catalog import models_of, quotas_of, seed_weights
from hub.config import Config
from hub.intake import Intake
from hub.janitor import Janitor
from hub.links import Links
from hub.model_service import ModelService
from hub.reading import Readers
from hub.service import DatasetService
from hub.store import Store
from lexicon.faults import Fault, FaultCode
from lexicon.ids import new_id
from modelspec.catalog import load_catalog
from objects.signing import MAX_LIFETIME, UrlSigner
from objects.store import open_store
from tunesmith.api.artifact.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from tunesmith.api.model.v1 import model_service_pb2, model_service_pb2_grpc


async def run() -> None:
    """Serves the hub until a stop is requested."""
    telemetry.start("hub")
    settings = config.load(Config, os.environ)
    telemetry.logger(__name__).info("starting", **config.describe(settings))
    tls = Tls.load(certificate=settings.tls_cert, key=settings.tls_key, authority=settings.tls_ca)
    lifetime = timedelta(minutes=settings.signed_url_minutes)
    if not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise Fault(FaultCode.CONFIG_INVALID, "TUNESMITH_SIGNED_URL_MINUTES must be 1 to 10080.")
    catalog = load_catalog(settings.catalog_dir)
    objects = open_store(settings.objects_url)
    signer = UrlSigner(settings.objects_signing_keys, settings.public_http_url)
    links = Links(signer, lifetime=lifetime, clock=partial(datetime.now, UTC))
    pool = await postgres.open_pool(settings.database_url, schema="hub")
    await postgres.migrate(pool, schema="hub", package="hub")
    store = Store(pool)
    await seed_weights(catalog, store, objects)
    token = service_token(settings.signing_key, "hub")
    billing = connect(settings.billing_addr, token=token, tls=tls)
    quota_of = quota_by_plan(billing, quotas_of(catalog))
    janitor = Janitor(store, objects)
    readers = Readers()
    intake = Intake(store, objects, readers, quota_of=quota_of, janitor=janitor)
    datasets = DatasetService(
        store, links=links, intake=intake, janitor=janitor, quota_of=quota_of, new_id=_upload_id
    )
    models = ModelService(store, catalog=models_of(catalog))
    artifacts = ArtifactService(store, objects, links=links, janitor=janitor, quota_of=quota_of)
    object_service = ObjectService(store, objects, links=links, janitor=janitor, quota_of=quota_of)

    def register(server: grpc.aio.Server) -> Sequence[str]:
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
        object_service_pb2_grpc.add_ObjectServiceServicer_to_server(object_service, server)
        return [
            dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name,
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name,
            object_service_pb2.DESCRIPTOR.services_by_name["ObjectService"].full_name,
        ]

    readers.start()
    try:
        await run_server(
            service="hub",
            listen=settings.listen,
            tls=tls,
            signing_key=settings.signing_key,
            register=register,
            background=[janitor.run],
        )
    finally:
        readers.close()
        await billing.close()
        await pool.close()


def _upload_id() -> str:
    return new_id("upload", now=datetime.now(UTC), random_bytes=secrets.token_bytes)


if __name__ == "__main__":
    main(run)
