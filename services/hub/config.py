"""Settings of the hub, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env


def parse_keys(text: str) -> tuple[str, ...]:
    """Comma-separated keys; the first signs, all verify."""
    return tuple(key.strip() for key in text.split(",") if key.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the hub."""

    listen: str = env(
        "TUNESMITH_LISTEN", default="127.0.0.1:7105", doc="host:port of gRPC, like 127.0.0.1:7105"
    )
    tls_cert: Path | None = env(
        "TUNESMITH_TLS_CERT", default=None, doc="PEM file of the certificate, beyond loopback"
    )
    tls_key: Path | None = env(
        "TUNESMITH_TLS_KEY", default=None, doc="PEM file of the certificate's private key"
    )
    tls_ca: Path | None = env(
        "TUNESMITH_TLS_CA", default=None, doc="PEM file of the authority of all certificates"
    )
    signing_key: str = env(
        "TUNESMITH_SIGNING_KEY", doc="key of all tokens, at least 32 bytes", secret=True
    )
    database_url: str = env(
        "TUNESMITH_DATABASE_URL", doc="postgresql://hub:password@host:port/tunesmith", secret=True
    )
    billing_addr: str = env("TUNESMITH_BILLING_ADDR", doc="host:port of billing")
    catalog_dir: Path = env(
        "TUNESMITH_CATALOG_DIR", doc="folder with tiers.toml, plans.toml and models.toml"
    )
    objects_url: str = env(
        "TUNESMITH_OBJECTS_URL", doc="file:///absolute/folder or s3://bucket/prefix"
    )
    objects_signing_keys: tuple[str, ...] = env(
        "TUNESMITH_OBJECTS_SIGNING_KEYS",
        doc="keys of signed URLs, at least 16 characters each, comma-separated; the first signs",
        secret=True,
        parse=parse_keys,
    )
    public_http_url: str = env(
        "TUNESMITH_PUBLIC_HTTP_URL", doc="address of the gateway's HTTP, like http://127.0.0.1:8080"
    )
    signed_url_minutes: int = env(
        "TUNESMITH_SIGNED_URL_MINUTES", default=15, doc="life of signed URLs, 1 to 10080 minutes"
    )
