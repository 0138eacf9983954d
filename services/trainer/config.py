"""The trainer's settings, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from chassis.config import env
from trainer.domain.device import CPU_TIER, UnslothPolicy
from trainer.tracking import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an operator sets on a GPU node; its secrets are tokens."""

    listen: str = env(
        "TUNESMITH_LISTEN", default="127.0.0.1:7106", doc="host:port of the health service"
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
        "TUNESMITH_TLS_CA", default=None, doc="PEM file of the authority that signed certificates"
    )
    scheduler_addr: str = env("TUNESMITH_SCHEDULER_ADDR", doc="host:port of the scheduler")
    node_token: str = env("TUNESMITH_NODE_TOKEN", doc="token of this node", secret=True)
    node_name: str = env("TUNESMITH_NODE_NAME", doc="id of this node, unique on the platform")
    node_tier: str = env("TUNESMITH_NODE_TIER", default=CPU_TIER, doc="GPU tier of the catalog")
    work_dir: Path = env("TUNESMITH_WORK_DIR", doc="folder for runs under way and their logs")
    model_cache: Path = env("TUNESMITH_MODEL_CACHE", doc="folder in which base models are kept")
    model_cache_bytes: int = env(
        "TUNESMITH_MODEL_CACHE_BYTES",
        default=0,
        doc="bytes that the models kept there may take, 0 for half of the volume; what was not "
        "used for longest goes first",
    )
    model_hub_url: str = env(
        "TUNESMITH_MODEL_HUB_URL", default="https://huggingface.co", doc="endpoint of the model hub"
    )
    model_hub_token: str | None = env(
        "HF_TOKEN",
        default=None,
        doc="token of the platform for the model hub, where a run brings none of its user",
        secret=True,
    )
    tracking: Tool = env(
        "TUNESMITH_TRACKING",
        default=Tool.NONE,
        doc="where figures of training go beside the platform: none, tensorboard, mlflow, wandb",
        parse=Tool,
    )
    tracking_uri: str = env(
        "TUNESMITH_TRACKING_URI",
        default="",
        doc="folder of TensorBoard's files or of offline W&B runs, or address of the MLflow server",
    )
    tracking_token: str | None = env(
        "MLFLOW_TRACKING_TOKEN",
        default=None,
        doc="bearer token of the MLflow server; W&B reads its own WANDB_API_KEY",
        secret=True,
    )
    unsloth: UnslothPolicy = env(
        "TUNESMITH_UNSLOTH",
        default=UnslothPolicy.AUTO,
        doc="when to try Unsloth before transformers + PEFT: auto (where there is CUDA), always, "
        "never",
        parse=UnslothPolicy,
    )
