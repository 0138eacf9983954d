"""What this node is: hardware, memory, temperature; read without torch."""

import fcntl
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import psutil
import pynvml

from chassis import telemetry
from lexicon.faults import Fault, FaultCode
from trainer.cards import first_card
from tunesmith.api.work.v1 import work_pb2

log = telemetry.logger(__name__)
LOCK_NAME = "agent.lock"
CPU_INFO = Path("/proc/cpuinfo")


def describe(*, name: str, tier: str, capabilities: Sequence[str]) -> work_pb2.Node:
    """This node as it registers itself."""
    described = work_pb2.Node(
        name=f"nodes/{name}",
        kind=work_pb2.TASK_KIND_TRAIN,
        tier=tier,
        hardware=hardware(),
        memory_bytes=memory_bytes(),
        version=_version(),
        capabilities=capabilities,
    )
    temperature = temperature_celsius()
    if temperature is not None:
        described.temperature_celsius = temperature
    return described


def hardware() -> str:
    """The device in words: the first GPU, or the processor."""
    gpu = _first_gpu()
    if gpu is not None:
        return str(pynvml.nvmlDeviceGetName(gpu))
    return f"{_processor_name()}, {os.cpu_count()} cores"


def memory_bytes() -> int:
    """Memory of the device in bytes; of the host on a CPU."""
    gpu = _first_gpu()
    if gpu is not None:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu).total)
    return int(psutil.virtual_memory().total)


def temperature_celsius() -> float | None:
    """Temperature of the GPU; None without one, and where it cannot be read."""
    gpu = _first_gpu()
    if gpu is None:
        return None
    try:
        return float(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError as error:
        log.warning("temperature_unreadable", cause=str(error))
        return None


def _first_gpu() -> object | None:
    return first_card(os.environ)


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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The context in which no other agent of this machine works in `folder`.

    Two agents in one folder would sweep away each other's runs. The kernel ends the claim with the
    process, however it ends.

    Raises:
        Fault: CONFIG_INVALID when another agent is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"Another trainer works in {folder}; give each a TUNESMITH_WORK_DIR of its own.",
                setting="TUNESMITH_WORK_DIR",
            ) from error
        yield
