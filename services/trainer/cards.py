"""The NVIDIA card that training runs on, as NVML knows it; agent and child ask alike."""

from collections.abc import Mapping
from typing import Any

import pynvml

from trainer.domain.host import MIG_PREFIX, first_visible_card


def first_card(environment: Mapping[str, str]) -> Any | None:
    """NVML's handle of the first card that CUDA shows in this environment; None without one."""
    wanted = first_visible_card(environment)
    try:
        pynvml.nvmlInit()
        if isinstance(wanted, str) and wanted.startswith(MIG_PREFIX):
            return pynvml.nvmlDeviceGetHandleByUUID(wanted)
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if wanted == index:
                return handle
            # CUDA takes the beginning of a UUID for the whole.
            if isinstance(wanted, str) and str(pynvml.nvmlDeviceGetUUID(handle)).startswith(wanted):
                return handle
    except pynvml.NVMLError:
        return None
    return None
