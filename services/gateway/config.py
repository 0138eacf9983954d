"""Settings of the gateway."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env

# The largest file that one PUT may bring: weights of a large model in one piece.
OBJECT_BYTES_MAX = 64 << 30


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the gateway, one environment variable each."""

    listen: str = env("TUNESMITH_LISTEN", doc="host:port of the gRPC server, 127.0.0.1:7100")
    http_listen: str = env("TUNESMITH_HTTP_LISTEN", doc="host:port of the HTTP server")
    signing_key: str = env(
        "TUNESMITH_SIGNING_KEY", doc="key that verifies tokens, at least 32 bytes", secret=True
    )
    scheduler_addr: str = env("TUNESMITH_SCHEDULER_ADDR", doc="host:port of the scheduler")
    validator_addr: str = env("TUNESMITH_VALIDATOR_ADDR", doc="host:port of the validator")
    billing_addr: str = env("TUNESMITH_BILLING_ADDR", doc="host:port of billing")
    hub_addr: str = env("TUNESMITH_HUB_ADDR", doc="host:port of the hub")
    objects_url: str = env("TUNESMITH_OBJECTS_URL", doc="file:///folder or s3://bucket/prefix")
    objects_signing_keys: tuple[str, ...] = env(
        "TUNESMITH_OBJECTS_SIGNING_KEYS",
        doc="comma-separated keys of signed URLs; the first signs",
        secret=True,
        parse=lambda text: tuple(key.strip() for key in text.split(",") if key.strip()),
    )
    public_http_url: str = env(
        "TUNESMITH_PUBLIC_HTTP_URL",
        default="",
        doc="base of signed URLs as clients see it; default http:// and the HTTP address",
    )
    http_hosts: tuple[str, ...] = env(
        "TUNESMITH_HTTP_HOSTS",
        default=(),
        doc="comma-separated host names that HTTP requests may carry beside the public one",
        parse=_names,
    )
    object_bytes_max: int = env(
        "TUNESMITH_OBJECT_BYTES_MAX", default=OBJECT_BYTES_MAX, doc="largest upload in bytes"
    )
    tls_certificate: Path | None = env(
        "TUNESMITH_TLS_CERT", default=None, doc="PEM file with our certificate"
    )
    tls_key: Path | None = env("TUNESMITH_TLS_KEY", default=None, doc="PEM file with our key")
    tls_authority: Path | None = env(
        "TUNESMITH_TLS_CA", default=None, doc="PEM file with the authority of all services"
    )

    @property
    def public_url(self) -> str:
        """Base of signed URLs as clients see it."""
        return self.public_http_url or f"http://{self.http_listen}"
