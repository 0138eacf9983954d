"""The seven services of one stack as processes: order, environment and readiness."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import identity
from deploy.local import nats, places, postgres
from deploy.local.layout import Layout
from deploy.local.places import Parts
from deploy.local.process import MARK, ProcessSpec

PROJECT = "local"
HEALTH_SECONDS = 2.0
STOP_SECONDS = 12.0
# The only variables inherited from the caller's environment, so that no secret of the shell leaks.
HANDED_ON = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    }
)
HANDED_TO_WORKERS = frozenset(
    {
        "HF_TOKEN",
        "HF_HOME",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
    }
)
# The address of operators' alerts: a secret of the one service that sends them.
HANDED_TO_SCHEDULER = frozenset({"TUNESMITH_ALERT_WEBHOOK_URL"})
# Keys and tokens of authentication; the stack creates its own and ignores the caller's.
NEVER_HANDED_ON = frozenset(
    {
        "TUNESMITH_SIGNING_KEY",
        "TUNESMITH_OBJECTS_SIGNING_KEYS",
        "TUNESMITH_NODE_TOKEN",
        "TUNESMITH_CREDENTIALS",
        "TUNESMITH_STATE",
        "TUNESMITH_DATABASE_URL",
        "TUNESMITH_NATS_URL",
        "TUNESMITH_TOKEN",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service: its name, when it starts, and what its environment adds.

    Attributes:
        level: 1 and up; Postgres and nats-server are level 0.
        reads_hub: whether it calls the model hub and therefore gets the user's hub token.
    """

    name: str
    level: int
    settings: Mapping[str, str]
    reads_hub: bool = False


def specs(layout: Layout, parts: Parts, environ: Mapping[str, str]) -> list[ProcessSpec]:
    """Every service as a process, in the order of starting."""
    return [_spec(layout, service, environ) for service in services(layout, parts)]


def services(layout: Layout, parts: Parts) -> list[Service]:
    """The services and the settings that each gets beside the common ones."""
    secrets = layout.secrets
    signing = {"TUNESMITH_SIGNING_KEY": secrets["signing_key"]}
    objects = {
        "TUNESMITH_OBJECTS_URL": (layout.state / "objects").as_uri(),
        "TUNESMITH_OBJECTS_SIGNING_KEYS": secrets["objects_key"],
    }
    catalog = {"TUNESMITH_CATALOG_DIR": str(places.repository() / "deploy" / "catalog")}
    models = {"TUNESMITH_MODEL_CACHE": str(places.cache_folder() / "models")}
    to = {
        name: {f"TUNESMITH_{name.upper()}_ADDR": address(layout, name)}
        for name in ("scheduler", "validator", "billing", "hub")
    }
    stored = {
        role: {"TUNESMITH_DATABASE_URL": postgres.database_url(layout, role)}
        for role in postgres.ROLES
    }
    evented = {
        name: {"TUNESMITH_NATS_URL": nats.url(layout, name)} for name in ("scheduler", "billing")
    }
    public = {"TUNESMITH_PUBLIC_HTTP_URL": http_url(layout)}
    http = {"TUNESMITH_HTTP_LISTEN": f"127.0.0.1:{layout.ports['gateway_http']}"}
    llama = {"TUNESMITH_LLAMA_VENDOR": parts.llama_vendor}
    billing = signing | stored["billing"] | evented["billing"] | to["scheduler"] | catalog
    hub = signing | stored["hub"] | objects | public | catalog | to["billing"]
    validator = signing | to["hub"] | to["billing"] | catalog | models
    scheduler = signing | stored["scheduler"] | evented["scheduler"] | catalog
    peers = to["validator"] | to["billing"] | to["hub"]
    gateway = signing | objects | peers | to["scheduler"] | http | public
    trainer = _worker(layout, "trainer", tier="cpu") | models
    exporter = _worker(layout, "exporter", tier="export") | models | llama
    return [
        Service(name="billing", level=1, settings=billing),
        Service(name="hub", level=1, settings=hub),
        Service(name="validator", level=1, settings=validator, reads_hub=True),
        Service(name="scheduler", level=1, settings=scheduler | peers),
        Service(name="gateway", level=2, settings=gateway),
        Service(name="trainer", level=2, settings=trainer, reads_hub=True),
        Service(name="exporter", level=2, settings=exporter, reads_hub=True),
    ]


def address(layout: Layout, name: str) -> str:
    """Host and port of a service's gRPC server."""
    return f"127.0.0.1:{layout.ports[name]}"


def http_url(layout: Layout) -> str:
    """Base of the gateway's HTTP side."""
    return f"http://127.0.0.1:{layout.ports['gateway_http']}"


def token(layout: Layout, role: identity.Role, subject: str, *, project: str | None = None) -> str:
    """A token that this stack's services accept."""
    return identity.mint(
        layout.secrets["signing_key"],
        subject=subject,
        role=role,
        project=project,
        now=datetime.now(UTC),
    )


async def serves(target: str) -> bool:
    """Whether a gRPC server answers grpc.health.v1 for the whole server with SERVING."""
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=""), timeout=HEALTH_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _worker(layout: Layout, name: str, *, tier: str) -> dict[str, str]:
    return {
        "TUNESMITH_SCHEDULER_ADDR": address(layout, "scheduler"),
        "TUNESMITH_NODE_NAME": f"{name}-1",
        "TUNESMITH_NODE_TIER": tier,
        "TUNESMITH_NODE_TOKEN": token(layout, identity.Role.NODE, f"nodes/{name}-1"),
        "TUNESMITH_WORK_DIR": str(layout.state / "work" / name),
    }


def _spec(layout: Layout, service: Service, environ: Mapping[str, str]) -> ProcessSpec:
    target = address(layout, service.name)

    async def is_ready() -> bool:
        return await serves(target)

    folder = layout.state / "work" / service.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ProcessSpec(
        name=service.name,
        level=service.level,
        # -P removes the working folder, which may hold users' files, from the import path.
        argv=(sys.executable, "-P", "-m", service.name),
        environment=environment(service, environ)
        | {
            "TUNESMITH_LISTEN": target,
            MARK: layout.stack_id,
        },
        folder=folder,
        log=layout.logs / f"{service.name}.log",
        is_ready=is_ready,
        port=layout.ports[service.name],
        stop_seconds=STOP_SECONDS,
    )


def environment(service: Service, environ: Mapping[str, str]) -> dict[str, str]:
    """A service's environment: inherited variables, overridden by its own settings.

    A TUNESMITH_ variable of the caller reaches every service (a shorter lease in a test, say),
    unless it holds a key; the trainer's tier is the only own setting that a caller may override.
    """
    handed = {
        name: value
        for name, value in environ.items()
        if name in HANDED_ON
        or (name.startswith(("TUNESMITH_", "OTEL_")) and name not in NEVER_HANDED_ON)
        if service.name == "scheduler" or name not in HANDED_TO_SCHEDULER
    }
    if service.reads_hub:
        handed |= {name: environ[name] for name in HANDED_TO_WORKERS if name in environ}
    merged = {"PATH": os.defpath, **handed, **service.settings, "PYTHONUNBUFFERED": "1"}
    if service.name == "trainer" and "TUNESMITH_NODE_TIER" in environ:
        merged["TUNESMITH_NODE_TIER"] = environ["TUNESMITH_NODE_TIER"]
    return merged
