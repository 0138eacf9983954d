"""What this node is, as it registers itself."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from exporter.domain.quantization import Quantization
from exporter.worker import core_count
from tunesmith.api.work.v1 import work_pb2

CPU_INFO: Final = Path("/proc/cpuinfo")


def describe(*, name: str, tier: str) -> work_pb2.Node:
    """This node with its processor, memory and the quantisations that it makes."""
    return work_pb2.Node(
        name=f"nodes/{name}",
        kind=work_pb2.TASK_KIND_EXPORT,
        tier=tier,
        hardware=f"{_processor_name()}, {core_count()} cores",
        memory_bytes=int(psutil.virtual_memory().total),
        version=_version(),
        capabilities=[str(quantization) for quantization in Quantization],
    )


def _processor_name() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    try:
        return metadata.version("tunesmith-platform")
    except metadata.PackageNotFoundError:
        return "0"
