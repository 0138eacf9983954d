"""Settings of the scheduler."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env
from scheduler.alerts import webhook_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Read once from the environment."""

    listen: str = env("TUNESMITH_LISTEN", doc="host:port of the gRPC server")
    signing_key: str = env(
        "TUNESMITH_SIGNING_KEY", secret=True, doc="key that signs and verifies tokens"
    )
    database_url: str = env(
        "TUNESMITH_DATABASE_URL", secret=True, doc="Postgres, with the scheduler's own role"
    )
    nats_url: str = env(
        "TUNESMITH_NATS_URL", secret=True, doc="NATS with JetStream, nats://user:password@host:port"
    )
    validator_address: str = env("TUNESMITH_VALIDATOR_ADDR", doc="host:port of the validator")
    billing_address: str = env("TUNESMITH_BILLING_ADDR", doc="host:port of billing")
    hub_address: str = env("TUNESMITH_HUB_ADDR", doc="host:port of the hub")
    catalog_dir: Path = env(
        "TUNESMITH_CATALOG_DIR", doc="folder of tiers.toml and plans.toml; plans limit concurrency"
    )
    lease_seconds: float = env(
        "TUNESMITH_LEASE_SECONDS",
        default=15.0,
        doc="how long a node may be silent before its run is given to another, in seconds",
    )
    heartbeat_millis: int = env(
        "TUNESMITH_HEARTBEAT_MILLIS",
        default=1000,
        doc="how often a worker sends a heartbeat, in milliseconds",
    )
    submission_seconds: float = env(
        "TUNESMITH_SUBMISSION_SECONDS",
        default=120.0,
        doc="age at which an unfinished submission is given up and its hold released, in seconds; "
        "longer than any call to billing takes",
    )
    alert_webhook_url: str | None = env(
        "TUNESMITH_ALERT_WEBHOOK_URL",
        default=None,
        secret=True,
        parse=webhook_url,
        doc="https:// address that takes operator alerts as a POST of JSON; http:// on loopback "
        "only",
    )
    tls_certificate: Path | None = env(
        "TUNESMITH_TLS_CERT", default=None, doc="certificate chain, PEM"
    )
    tls_key: Path | None = env("TUNESMITH_TLS_KEY", default=None, doc="private key, PEM")
    tls_authority: Path | None = env(
        "TUNESMITH_TLS_CA", default=None, doc="certificates of the authority, PEM"
    )
