"""A scheduler process with small gRPC fakes of its neighbours: validator, billing and hub."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from chassis.client import connect
from chassis.identity import Role, mint
from lexicon.faults import Fault, FaultCode
from tests.support.desk import SIGNING_KEY, serving
from tests.support.ports import free_port
from tunesmith.api.artifact.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    object_service_pb2,
    object_service_pb2_grpc,
)
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.event.v1 import event_service_pb2_grpc
from tunesmith.api.export.v1 import export_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_pb2, fault_service_pb2_grpc
from tunesmith.api.model.v1 import model_pb2
from tunesmith.api.run.v1 import run_service_pb2_grpc
from tunesmith.api.validation.v1 import validation_service_pb2, validation_service_pb2_grpc
from tunesmith.api.work.v1 import work_service_pb2_grpc

ROOT = Path(__file__).parents[2]
START_SECONDS = 20.0
RATE_MICROS = 10_000
A_CONFIG = model_pb2.ModelFile(
    path="config.json", uri="object://models/anvil/config", size_bytes=2, sha256="0" * 64
)
A_DATASET = model_pb2.ModelFile(uri="object://datasets/d1", size_bytes=9, sha256="1" * 64)


@dataclass(slots=True)
class FakeValidator(validation_service_pb2_grpc.ValidationServiceServicer):
    """Finds nothing, or what it is told to find."""

    findings: list[fault_pb2.Finding] = field(default_factory=list)
    verified: bool = True
    gguf: bool = True
    plan: str = "local"
    newest_version: int = 1
    in_store: bool = True
    model_files: list[model_pb2.ModelFile] = field(default_factory=lambda: [A_CONFIG])
    dataset_file: model_pb2.ModelFile = field(default_factory=lambda: A_DATASET)
    hub_tokens: list[str] = field(default_factory=list)
    calls: int = 0

    async def ValidateRun(self, request: Any, _context: Any) -> Any:
        self.calls += 1
        self.hub_tokens.append(request.hub_token)
        response = validation_service_pb2.ValidateRunResponse(findings=self.findings)
        if any(each.severity == fault_pb2.SEVERITY_RED for each in self.findings):
            response.verdict = fault_pb2.SEVERITY_RED
            return response
        response.quote.CopyFrom(a_quote())
        response.model.name = "models/anvil-3m"
        response.model.parameter_count = 3_000_000
        if self.in_store:
            response.model.files.extend(self.model_files)
        snapshot = response.snapshot
        snapshot.model_id = "tunesmith/anvil-3m"
        snapshot.verified = self.verified
        snapshot.plan = self.plan
        snapshot.export.gguf = self.gguf
        snapshot.export.quantizations.append("Q4_K_M")
        training = request.spec.training
        snapshot.training.epochs = training.epochs or 1
        snapshot.training.checkpoint_keep_count = training.checkpoint_keep_count
        snapshot.lora.CopyFrom(request.spec.lora)
        snapshot.timeout.FromSeconds(3600)
        for name in request.spec.datasets:
            number = self.newest_version
            version = name if "/versions/" in name else f"{name}/versions/{number}"
            snapshot.dataset_versions.append(version)
            response.datasets.add(
                name=version,
                version=number,
                uri=self.dataset_file.uri,
                sha256=self.dataset_file.sha256,
                size_bytes=self.dataset_file.size_bytes,
            )
        snapshot.fingerprint = hashlib.sha256(
            request.spec.SerializeToString(deterministic=True)
        ).hexdigest()
        return response


@dataclass(slots=True)
class FakeBilling(billing_service_pb2_grpc.BillingServiceServicer):
    """Holds by run; `gate` keeps an answer back after the hold was made."""

    held: dict[str, int] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    poor: bool = False
    hold_made: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def HoldFunds(self, request: Any, _context: Any) -> Any:
        if self.poor:
            raise Fault(FaultCode.BILLING_FUNDS_INSUFFICIENT)
        self.held[request.run] = request.quote.maximum.amount_micros
        self.hold_made.set()
        await self.gate.wait()
        return billing_service_pb2.HoldFundsResponse()

    async def ReleaseHold(self, request: Any, _context: Any) -> Any:
        self.held.pop(request.run, None)
        self.released.append(request.run)
        return billing_service_pb2.ReleaseHoldResponse()


@dataclass(slots=True)
class FakeHub(object_service_pb2_grpc.ObjectServiceServicer):
    """Signs everything; knows the sha256 of what was stored.

    `register_gate` keeps the registration of a file back, `registering` says that one has begun.
    """

    registered: list[artifact_pb2.ArtifactFile] = field(default_factory=list)
    wrong_sha256: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    verified: list[str] = field(default_factory=list)
    registering: asyncio.Event = field(default_factory=asyncio.Event)
    register_gate: asyncio.Event = field(default_factory=asyncio.Event)
    holds: dict[str, list[str]] = field(default_factory=dict)
    deleted_versions: set[str] = field(default_factory=set)
    sweeps: list[object_service_pb2.DeleteRunLeftoversRequest] = field(default_factory=list)
    removed_counts: list[int] = field(default_factory=list)
    again_after: timedelta = timedelta(minutes=75)
    is_away: bool = False
    artifacts: dict[str, artifact_pb2.Artifact] = field(default_factory=dict)
    quota_bytes: int = 1 << 40
    export_sweeps: list[object_service_pb2.DeleteExportLeftoversRequest] = field(
        default_factory=list
    )
    refuses_files: FaultCode | None = None
    sign: Callable[[str], str] = "http://objects/{}".format
    sign_calls: int = 0

    def __post_init__(self) -> None:
        self.register_gate.set()

    async def HoldDatasetVersions(self, request: Any, _context: Any) -> Any:
        if self.deleted_versions.intersection(request.versions):
            raise Fault(FaultCode.DATASET_DELETED)
        self.holds[request.run] = list(request.versions)
        return object_service_pb2.HoldDatasetVersionsResponse()

    async def DeleteRunLeftovers(self, request: Any, _context: Any) -> Any:
        self.sweeps.append(request)
        if self.is_away:
            raise Fault(FaultCode.STORAGE_FULL)
        if not request.only_uris:
            self.holds.pop(request.run, None)
        count = self.removed_counts.pop(0) if self.removed_counts else 0
        response = object_service_pb2.DeleteRunLeftoversResponse(removed_count=count)
        response.again_after.FromTimedelta(self.again_after)
        return response

    async def SignObjects(self, request: Any, _context: Any) -> Any:
        self.sign_calls += 1
        return object_service_pb2.SignObjectsResponse(
            objects=[
                object_service_pb2.SignedObject(uri=each.uri, url=self.sign(each.uri))
                for each in request.objects
            ]
        )

    async def VerifyObjects(self, request: Any, _context: Any) -> Any:
        for said in request.objects:
            if said.uri.rpartition("/")[2] in self.missing:
                raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
        self.verified += [said.uri for said in request.objects]
        return object_service_pb2.VerifyObjectsResponse()

    async def RegisterArtifactFile(self, request: Any, _context: Any) -> Any:
        self.registering.set()
        await self.register_gate.wait()
        if request.file.sha256 in self.wrong_sha256:
            raise Fault(FaultCode.STORAGE_CHECKSUM_MISMATCH)
        if self.refuses_files is not None:
            raise Fault(self.refuses_files)
        run = request.run.rpartition("/")[2]
        project = request.run.split("/")[1]
        name = f"projects/{project}/artifacts/{run}"
        if request.existing_only and name not in self.artifacts:
            raise Fault(FaultCode.ARTIFACT_NOT_FOUND)
        self.registered.append(request.file)
        artifact = self.artifacts.setdefault(
            name, artifact_pb2.Artifact(name=name, run=request.run, base_model=request.base_model)
        )
        artifact.files.append(request.file)
        return object_service_pb2.RegisterArtifactFileResponse(artifact=artifact)

    async def DeleteExportLeftovers(self, request: Any, _context: Any) -> Any:
        self.export_sweeps.append(request)
        response = object_service_pb2.DeleteExportLeftoversResponse()
        response.again_after.FromTimedelta(self.again_after)
        return response


@dataclass(slots=True)
class FakeArtifacts(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """The hub entries, for services that look at them."""

    hub: FakeHub

    async def GetArtifact(self, request: Any, _context: Any) -> Any:
        artifact = self.hub.artifacts.get(request.name)
        if artifact is None:
            raise Fault(FaultCode.ARTIFACT_NOT_FOUND, artifact=request.name)
        return artifact_service_pb2.GetArtifactResponse(artifact=artifact)

    async def GetStorageUsage(self, request: Any, _context: Any) -> Any:
        files = [file for each in self.hub.artifacts.values() for file in each.files]
        usage = artifact_pb2.StorageUsage(
            artifact_bytes=sum(file.size_bytes for file in files),
            artifact_quota_bytes=self.hub.quota_bytes,
        )
        return artifact_service_pb2.GetStorageUsageResponse(usage=usage)


def a_quote() -> billing_pb2.Quote:
    """Ten minutes expected, sixty at most."""

    def money(amount_micros: int) -> billing_pb2.Money:
        return billing_pb2.Money(amount_micros=amount_micros, currency_code="CREDIT")

    return billing_pb2.Quote(
        expected=money(10 * RATE_MICROS),
        maximum=money(60 * RATE_MICROS),
        expected_minutes=10,
        maximum_minutes=60,
        rate_per_minute=money(RATE_MICROS),
        export_rate_per_minute=money(0),
        gpu_tier="cpu",
        refundable=True,
    )


@dataclass(slots=True)
class Neighbours:
    """What the scheduler calls, with the address that all three answer on."""

    validator: FakeValidator
    billing: FakeBilling
    hub: FakeHub
    address: str = ""


@asynccontextmanager
async def neighbours() -> AsyncIterator[Neighbours]:
    """The three fakes, served by the real chassis with real tokens."""
    # The fakes answer only what the scheduler asks.
    fakes = Neighbours(
        validator=FakeValidator(),  # type: ignore[abstract]
        billing=FakeBilling(),  # type: ignore[abstract]
        hub=FakeHub(),
    )

    def register(server: grpc.aio.Server) -> Sequence[str]:
        validation_service_pb2_grpc.add_ValidationServiceServicer_to_server(fakes.validator, server)
        billing_service_pb2_grpc.add_BillingServiceServicer_to_server(fakes.billing, server)
        object_service_pb2_grpc.add_ObjectServiceServicer_to_server(fakes.hub, server)
        # Of the hub entries the scheduler only looks at one and at the quota.
        artifacts: Any = FakeArtifacts(fakes.hub)  # type: ignore[abstract]
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
        return [
            "tunesmith.api.validation.v1.ValidationService",
            "tunesmith.api.billing.v1.BillingService",
            "tunesmith.api.artifact.v1.ObjectService",
            "tunesmith.api.artifact.v1.ArtifactService",
        ]

    async with serving(register) as address:
        fakes.address = address
        yield fakes


@dataclass(slots=True)
class SchedulerProcess:
    """`python -m scheduler`, which a test may kill and start again."""

    environment: dict[str, str]
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.port = self.port or free_port()
        environment = {**self.environment, "TUNESMITH_LISTEN": self.address}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 (starting is short)
                [sys.executable, "-m", "scheduler"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                assert self.process.poll() is None, self.log.read_text()[-4000:]
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """As by kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Asks it to stop and returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, by: signal.Signals) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(by)
        return process.wait(timeout=START_SECONDS)

    async def _answers(self) -> bool:
        def attempt() -> bool:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        return await asyncio.to_thread(attempt)


def scheduler_process(
    *, database_url: str, nats_url: str, neighbours_address: str, folder: Path, **settings: str
) -> SchedulerProcess:
    """A process that is not started yet; `settings` are further variables."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("services", "libs")),
        "TUNESMITH_SIGNING_KEY": SIGNING_KEY,
        "TUNESMITH_DATABASE_URL": database_url,
        "TUNESMITH_NATS_URL": nats_url,
        "TUNESMITH_VALIDATOR_ADDR": neighbours_address,
        "TUNESMITH_BILLING_ADDR": neighbours_address,
        "TUNESMITH_HUB_ADDR": neighbours_address,
        "TUNESMITH_CATALOG_DIR": str(ROOT / "deploy" / "catalog"),
        "TUNESMITH_LEASE_SECONDS": "2",
        **settings,
    }
    log = folder / f"scheduler-{len(list(folder.glob('scheduler-*.log')))}.log"
    return SchedulerProcess(environment=environment, log=log)


@dataclass(slots=True)
class Stubs:
    """All services of a scheduler, called as somebody."""

    runs: Any
    events: Any
    exports: Any
    faults: Any
    work: Any
    nodes: Any


@asynccontextmanager
async def calling(
    address: str, role: Role = Role.PROJECT, *, project: str = "acme", subject: str = "ada"
) -> AsyncIterator[Stubs]:
    """Calls a scheduler with a token of a role."""
    token = mint(
        SIGNING_KEY,
        subject=subject,
        role=role,
        project=project if role is Role.PROJECT else None,
        now=datetime.now(UTC),
    )
    channel = connect(address, token=lambda: token)
    try:
        yield Stubs(
            runs=run_service_pb2_grpc.RunServiceStub(channel),
            events=event_service_pb2_grpc.EventServiceStub(channel),
            exports=export_service_pb2_grpc.ExportServiceStub(channel),
            faults=fault_service_pb2_grpc.FaultServiceStub(channel),
            work=work_service_pb2_grpc.WorkServiceStub(channel),
            nodes=work_service_pb2_grpc.NodeServiceStub(channel),
        )
    finally:
        await channel.close()
