"""The validator as a process of calls, beside a hub and a billing of a few lines each."""

import hashlib
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import grpc.aio

from chassis.identity import Role
from corpus.formats import inspect_file
from lexicon.faults import Fault, FaultCode
from modelspec.catalog import load_catalog
from objects.modelhub import ModelHub
from tests.support.desk import calling, serving
from tests.support.modelhub_server import ModelHubServer
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.dataset.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
)
from tunesmith.api.model.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc
from tunesmith.api.validation.v1 import validation_service_pb2, validation_service_pb2_grpc
from validator.encoding import Encoder
from validator.gathering import Gatherer
from validator.library import Library
from validator.service import ValidationService

ROOT = Path(__file__).parents[3]
CATALOG = load_catalog(ROOT / "deploy/catalog")
ANVIL = ROOT / "deploy/models/anvil/weights"
PARENT = "projects/acme"


@dataclass(kw_only=True)
class World:
    """What hub and billing know; tests change it."""

    plan: str = "local"
    artifact_bytes: int = 0
    artifact_quota_bytes: int = 10 << 30
    datasets: dict[str, Path] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    waived: set[str] = field(default_factory=set)
    files_url: str = ""


class Hub(
    dataset_service_pb2_grpc.DatasetServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    artifact_service_pb2_grpc.ArtifactServiceServicer,
    object_service_pb2_grpc.ObjectServiceServicer,
):
    """Answers as the hub does."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def GetDataset(
        self, request: dataset_service_pb2.GetDatasetRequest, _context: Any
    ) -> dataset_service_pb2.GetDatasetResponse:
        dataset = dataset_pb2.Dataset(name=request.name, latest=self._version(request.name))
        return dataset_service_pb2.GetDatasetResponse(dataset=dataset)

    async def GetDatasetVersion(
        self, request: dataset_service_pb2.GetDatasetVersionRequest, _context: Any
    ) -> dataset_service_pb2.GetDatasetVersionResponse:
        name = request.name.split("/versions/")[0]
        return dataset_service_pb2.GetDatasetVersionResponse(version=self._version(name))

    async def PreviewDataset(
        self, request: dataset_service_pb2.PreviewDatasetRequest, _context: Any
    ) -> dataset_service_pb2.PreviewDatasetResponse:
        path = self._world.datasets[request.name.split("/versions/")[0]]
        lines = path.read_text().splitlines()
        return dataset_service_pb2.PreviewDatasetResponse(row_json=lines[: request.row_count])

    async def ResolveModel(
        self, request: model_service_pb2.ResolveModelRequest, _context: Any
    ) -> model_service_pb2.ResolveModelResponse:
        text = request.base_model
        if "/" not in text:
            raise Fault(FaultCode.MODEL_NOT_FOUND, f"There is no model {text}.")
        row = CATALOG.models.get(text)
        if row is None:
            consent = model_pb2.ModelConsent(refund_waived=text in self._world.waived)
            return model_service_pb2.ResolveModelResponse(
                model=model_pb2.Model(model_id=text, consent=consent)
            )
        model = model_pb2.Model(
            model_id=row.model_id, family=row.family, verified=row.verified, revision=row.revision
        )
        if row.local_path is not None:
            model.files.extend(_file(path) for path in sorted(row.local_path.iterdir()))
        return model_service_pb2.ResolveModelResponse(model=model)

    async def GetStorageUsage(
        self, _request: artifact_service_pb2.GetStorageUsageRequest, _context: Any
    ) -> artifact_service_pb2.GetStorageUsageResponse:
        return artifact_service_pb2.GetStorageUsageResponse(
            usage=artifact_pb2.StorageUsage(
                artifact_bytes=self._world.artifact_bytes,
                artifact_quota_bytes=self._world.artifact_quota_bytes,
            )
        )

    async def SignObjects(
        self, request: object_service_pb2.SignObjectsRequest, _context: Any
    ) -> object_service_pb2.SignObjectsResponse:
        return object_service_pb2.SignObjectsResponse(
            objects=[
                object_service_pb2.SignedObject(
                    uri=each.uri,
                    url=f"{self._world.files_url}/{each.uri.removeprefix('object://')}",
                )
                for each in request.objects
            ]
        )

    def _version(self, name: str) -> dataset_pb2.DatasetVersion:
        dataset = name.rsplit("/", 1)[-1]
        if name in self._world.deleted:
            raise Fault(FaultCode.DATASET_DELETED, f"Dataset {dataset} was deleted.")
        if name not in self._world.datasets:
            raise Fault(FaultCode.DATASET_NOT_FOUND, f"There is no dataset {dataset}.")
        found = inspect_file(self._world.datasets[name])
        return dataset_pb2.DatasetVersion(
            name=f"{name}/versions/1",
            version=1,
            format=f"FORMAT_{found.format.name}",
            row_count=found.trainable_row_count,
            stats=dataset_pb2.DatasetStats(character_count=found.character_count),
        )


class Billing(billing_service_pb2_grpc.BillingServiceServicer):
    """Answers as billing does."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def GetAccount(
        self, request: billing_service_pb2.GetAccountRequest, _context: Any
    ) -> billing_service_pb2.GetAccountResponse:
        return billing_service_pb2.GetAccountResponse(
            account=billing_pb2.Account(name=request.name, plan=self._world.plan)
        )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence."""


@asynccontextmanager
async def validator(
    world: World, hub_server: ModelHubServer, cache: Path
) -> AsyncIterator[validation_service_pb2_grpc.ValidationServiceStub]:
    """The real service on real channels; gives a stub of a project's caller."""
    # The doubles answer what the validator asks and nothing else.
    hub_double, billing_double = cast(Any, Hub)(world), cast(Any, Billing)(world)
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(ANVIL)))
    threading.Thread(target=files.serve_forever, args=(0.02,), daemon=True).start()
    world.files_url = f"http://127.0.0.1:{files.server_address[1]}"
    try:
        async with (
            serving(partial(_register_hub, hub_double)) as hub_address,
            serving(partial(_register_billing, billing_double)) as billing_address,
            calling(hub_address, Role.SERVICE) as hub,
            calling(billing_address, Role.SERVICE) as billing,
        ):
            library = Library(
                hub, ModelHub(hub_server.url, cache / "hub", retry_wait_seconds=0.01), cache=cache
            )
            gatherer = Gatherer(
                hub=hub, billing=billing, library=library, encoder=Encoder(), catalog=CATALOG
            )
            service = ValidationService(gatherer, CATALOG)
            async with (
                serving(partial(_register_validator, service)) as address,
                calling(address) as channel,
            ):
                yield validation_service_pb2_grpc.ValidationServiceStub(channel)
    finally:
        files.shutdown()
        files.server_close()


def dataset(folder: Path, rows: Sequence[Mapping[str, Any]], *, name: str = "habit") -> Path:
    """A JSONL file."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _file(path: Path) -> model_pb2.ModelFile:
    content = path.read_bytes()
    return model_pb2.ModelFile(
        path=path.name,
        uri=f"object://{path.name}",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _register_hub(hub: Hub, server: grpc.aio.Server) -> Sequence[str]:
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(hub, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(hub, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(hub, server)
    object_service_pb2_grpc.add_ObjectServiceServicer_to_server(hub, server)
    return [
        dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name,
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    ]


def _register_billing(billing: Billing, server: grpc.aio.Server) -> Sequence[str]:
    billing_service_pb2_grpc.add_BillingServiceServicer_to_server(billing, server)
    return [billing_service_pb2.DESCRIPTOR.services_by_name["BillingService"].full_name]


def _register_validator(service: ValidationService, server: grpc.aio.Server) -> Sequence[str]:
    validation_service_pb2_grpc.add_ValidationServiceServicer_to_server(service, server)
    return [validation_service_pb2.DESCRIPTOR.services_by_name["ValidationService"].full_name]
