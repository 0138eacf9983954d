"""Settings of the validator, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the validator."""

    listen: str = env(
        "TUNESMITH_LISTEN",
        default="127.0.0.1:7103",
        doc="host:port of gRPC, for example 127.0.0.1:7103",
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
    hub_addr: str = env("TUNESMITH_HUB_ADDR", doc="host:port of the hub")
    billing_addr: str = env("TUNESMITH_BILLING_ADDR", doc="host:port of billing")
    catalog_dir: Path = env(
        "TUNESMITH_CATALOG_DIR", doc="folder with tiers.toml, plans.toml and models.toml"
    )
    model_hub_url: str = env(
        "TUNESMITH_MODEL_HUB_URL",
        default="https://huggingface.co",
        doc="address of the model hub",
    )
    model_hub_token: str | None = env(
        "HF_TOKEN",
        default=None,
        doc="token of the platform for the model hub; needed for gated models",
        secret=True,
    )
    model_cache: Path = env(
        "TUNESMITH_MODEL_CACHE", doc="folder for configs and tokenizers of base models"
    )
    model_cache_bytes: int = env(
        "TUNESMITH_MODEL_CACHE_BYTES",
        default=0,
        doc="bytes that those may take, 0 for half of the volume; what was not used for longest "
        "goes first",
    )
