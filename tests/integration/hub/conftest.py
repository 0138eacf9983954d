"""The hub as it runs, on a real Postgres and a folder of objects; quotas come from a table."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import grpc.aio
import pytest

from chassis import postgres
from chassis.identity import Role
from hub.artifact_service import ArtifactService, ObjectService
from hub.catalog import models_of, seed_weights
from hub.domain.quota import Quota
from hub.intake import Intake
from hub.janitor import Janitor
from hub.links import Links
from hub.model_service import ModelService
from hub.reading import Readers
from hub.service import DatasetService
from hub.store import Store
from modelspec.catalog import load_catalog
from objects.signing import UrlSigner
from objects.store import ObjectStore, open_store
from tests.support.desk import calling, serving
from tests.support.postgres import PostgresServer
from tunesmith.api.artifact.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from tunesmith.api.model.v1 import model_service_pb2, model_service_pb2_grpc

CATALOG = Path(__file__).parents[3] / "deploy" / "catalog"
LIMIT = 1 << 30
SERVICES = (
    artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
    object_service_pb2.DESCRIPTOR.services_by_name["ObjectService"],
    dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
)


@dataclass(kw_only=True)
class Hub:
    """The hub with everything that a test needs to talk to it."""

    store: Store
    pool: postgres.Pool
    objects: ObjectStore
    objects_folder: Path
    signer: UrlSigner
    janitor: Janitor
    quotas: dict[str, Quota]
    address: str
    channel: grpc.aio.Channel
    datasets: "dataset_service_pb2_grpc.DatasetServiceAsyncStub"
    models: "model_service_pb2_grpc.ModelServiceAsyncStub"
    artifacts: "artifact_service_pb2_grpc.ArtifactServiceAsyncStub"
    service: "object_service_pb2_grpc.ObjectServiceAsyncStub"
    service_channel: grpc.aio.Channel
    numbers: "itertools.count[int]"
    readers: Readers

    def request_id(self) -> str:
        return f"request-{next(self.numbers)}"

    async def put(self, url: str, data: bytes) -> None:
        """PUTs bytes to a signed URL as the gateway does."""
        parts = urlsplit(url)
        grant = self.signer.verify("PUT", parts.path, parts.query, datetime.now(UTC))
        await self.objects.put(
            grant.key, _once(data), size_limit=LIMIT, exact_bytes=grant.size_bytes
        )

    async def get(self, url: str) -> bytes:
        """GETs the bytes behind a signed URL as the gateway does."""
        parts = urlsplit(url)
        grant = self.signer.verify("GET", parts.path, parts.query, datetime.now(UTC))
        return b"".join([piece async for piece in await self.objects.get(grant.key)])

    async def announce(
        self, dataset_id: str, data: bytes, *, file_name: str = "rows.jsonl"
    ) -> dataset_service_pb2.CreateUploadResponse:
        """Starts an upload of these bytes."""
        response: dataset_service_pb2.CreateUploadResponse = await self.datasets.CreateUpload(
            dataset_service_pb2.CreateUploadRequest(
                request_id=self.request_id(),
                parent="projects/acme",
                dataset_id=dataset_id,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                file_name=file_name,
            )
        )
        return response

    async def commit(self, upload_id: str) -> dataset_service_pb2.CommitUploadResponse:
        """Ends an upload."""
        request = dataset_service_pb2.CommitUploadRequest(
            request_id=self.request_id(), parent="projects/acme", upload_id=upload_id
        )
        response: dataset_service_pb2.CommitUploadResponse = await self.datasets.CommitUpload(
            request
        )
        return response

    async def push(
        self, dataset_id: str, data: bytes, *, file_name: str = "rows.jsonl"
    ) -> dataset_service_pb2.CommitUploadResponse:
        """Announces, uploads and commits a file."""
        upload = await self.announce(dataset_id, data, file_name=file_name)
        await self.put(upload.url, data)
        return await self.commit(upload.upload_id)

    def object_files(self) -> list[Path]:
        """The files with bytes of objects, without those of the catalog."""
        return [
            path
            for path in self.objects_folder.rglob("_*")
            if path.name != "_manifest.json" and "models" not in path.parts
        ]


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture(scope="module")
def room_database(postgres_server: PostgresServer) -> str:
    """One database for a file of tests: making one takes longer than most tests."""
    return asyncio.run(postgres_server.create_database())


@pytest.fixture
async def database_url(room_database: str) -> AsyncIterator[str]:
    """The file's database, emptied after each test."""
    yield room_database
    connection = await asyncpg.connect(room_database)
    await connection.execute("DROP SCHEMA IF EXISTS hub CASCADE")
    await connection.close()


@pytest.fixture
def objects_url(tmp_path: Path) -> str:
    """Where the objects lie: a folder, unless a file of tests says otherwise."""
    return (tmp_path / "objects").as_uri()


@pytest.fixture
async def hub(database_url: str, objects_url: str, tmp_path: Path) -> AsyncIterator[Hub]:
    """The hub on a fresh database and an empty folder of objects."""
    async with AsyncExitStack() as stack:
        pool = await postgres.open_pool(database_url, schema="hub")
        stack.push_async_callback(pool.close)
        await postgres.migrate(pool, schema="hub", package="hub")
        store, objects = Store(pool), open_store(objects_url)
        signer = UrlSigner(["key-of-signed-urls-in-tests"], "http://127.0.0.1:8080")
        links = Links(signer, lifetime=timedelta(minutes=15), clock=partial(datetime.now, UTC))
        catalog = load_catalog(CATALOG)
        await seed_weights(catalog, store, objects)
        quotas = {"acme": Quota(dataset_bytes=1 << 20, artifact_bytes=1 << 20)}

        async def quota_of(project: str) -> Quota:
            return quotas.get(project, Quota(dataset_bytes=1 << 20, artifact_bytes=1 << 20))

        janitor = Janitor(store, objects)
        readers = Readers()
        stack.callback(readers.close)
        intake = Intake(store, objects, readers, quota_of=quota_of, janitor=janitor)
        numbers = itertools.count(1)

        def register(server: grpc.aio.Server) -> Sequence[str]:
            dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(
                DatasetService(
                    store,
                    links=links,
                    intake=intake,
                    janitor=janitor,
                    quota_of=quota_of,
                    new_id=lambda: f"upload-{next(numbers)}",
                ),
                server,
            )
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(
                ModelService(store, catalog=models_of(catalog)), server
            )
            artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(
                ArtifactService(store, objects, links=links, janitor=janitor, quota_of=quota_of),
                server,
            )
            object_service_pb2_grpc.add_ObjectServiceServicer_to_server(
                ObjectService(store, objects, links=links, janitor=janitor, quota_of=quota_of),
                server,
            )
            return [each.full_name for each in SERVICES]

        address = await stack.enter_async_context(serving(register))
        channel = await stack.enter_async_context(calling(address))
        service_channel = await stack.enter_async_context(calling(address, Role.SERVICE))
        yield Hub(
            store=store,
            pool=pool,
            objects=objects,
            objects_folder=tmp_path / "objects",
            signer=signer,
            janitor=janitor,
            quotas=quotas,
            address=address,
            channel=channel,
            datasets=dataset_service_pb2_grpc.DatasetServiceStub(channel),
            models=model_service_pb2_grpc.ModelServiceStub(channel),
            artifacts=artifact_service_pb2_grpc.ArtifactServiceStub(channel),
            service=object_service_pb2_grpc.ObjectServiceStub(service_channel),
            service_channel=service_channel,
            numbers=numbers,
            readers=readers,
        )
