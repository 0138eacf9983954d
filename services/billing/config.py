"""Settings of billing, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of billing."""

    listen: str = env(
        "TUNESMITH_LISTEN",
        default="127.0.0.1:7104",
        doc="host:port of gRPC, for example 127.0.0.1:7104",
    )
    tls_cert: Path | None = env(
        "TUNESMITH_TLS_CERT",
        default=None,
        doc="PEM file of the certificate; needed beyond loopback",
    )
    tls_key: Path | None = env(
        "TUNESMITH_TLS_KEY", default=None, doc="PEM file of the certificate's private key"
    )
    tls_ca: Path | None = env(
        "TUNESMITH_TLS_CA",
        default=None,
        doc="PEM file of the authority that signed all certificates",
    )
    signing_key: str = env(
        "TUNESMITH_SIGNING_KEY", doc="key of all tokens, at least 32 bytes", secret=True
    )
    database_url: str = env(
        "TUNESMITH_DATABASE_URL",
        doc="postgresql://billing:password@host:port/tunesmith",
        secret=True,
    )
    nats_url: str = env("TUNESMITH_NATS_URL", doc="nats://billing:password@host:port", secret=True)
    scheduler_addr: str = env("TUNESMITH_SCHEDULER_ADDR", doc="host:port of the scheduler")
    catalog_dir: Path = env(
        "TUNESMITH_CATALOG_DIR", doc="folder with tiers.toml, plans.toml and models.toml"
    )
    default_plan: str = env(
        "TUNESMITH_DEFAULT_PLAN",
        default="free",
        doc="plan of a project that is seen for the first time",
    )
