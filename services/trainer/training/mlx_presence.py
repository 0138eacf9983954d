"""Whether MLX works here, and mlx-lm imported without what its import does to the process."""

import importlib.util
import logging
import platform
import resource
import sys
from types import ModuleType

from lexicon.faults import Fault, FaultCode

log = logging.getLogger(__name__)

# What may go wrong while a library of another platform is imported, or computes for the first time.
FAILURES = (ImportError, OSError, RuntimeError, ValueError, AttributeError)


def is_available() -> bool:
    """Whether mlx-lm can be imported and MLX computes on this machine."""
    if importlib.util.find_spec("mlx_lm") is None:
        return False
    try:
        core = import_mlx()
        works: bool = (core.ones((2, 2)) @ core.ones((2, 2))).tolist() == [[2.0, 2.0], [2.0, 2.0]]
    except FAILURES:
        log.warning("mlx-lm is installed, but does not work here", exc_info=True)
        return False
    return works


def is_apple_silicon() -> bool:
    """Whether this host is one that MLX is made for."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def require_available() -> None:
    """Checks that the backend can be taken.

    Raises:
        Fault: DEP_MLX_UNAVAILABLE.
    """
    if not is_available():
        raise Fault(FaultCode.DEP_MLX_UNAVAILABLE)


def import_mlx() -> ModuleType:
    """`mlx.core`, with mlx-lm imported and the process as it was before.

    mlx-lm lowers the number of files that a process may open to 2048. And away from Apple's GPUs,
    MLX compiles its fused operations with the machine's C++ compiler into a folder that every user
    may write to: they are computed one by one instead.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        importlib.import_module("mlx_lm")
    finally:
        _restore_open_files(soft, hard)
    core = importlib.import_module("mlx.core")
    if not core.metal.is_available():
        core.disable_compile()
    return core


def _restore_open_files(soft: int, hard: int) -> None:
    _, left = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        # Without privileges the upper bound does not rise again.
        resource.setrlimit(resource.RLIMIT_NOFILE, (smaller_limit(soft, left), left))


def smaller_limit(one: int, other: int) -> int:
    """The smaller of two limits of a process; "no limit" is a small number on some systems."""
    limited = [each for each in (one, other) if each != resource.RLIM_INFINITY]
    return min(limited, default=resource.RLIM_INFINITY)
