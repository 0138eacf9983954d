"""The kernel in use: proven against the reference before its first real block, type by type."""

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kquant.build import CannotBuildError, kernel_library

log = logging.getLogger(__name__)

TYPES: Final = (
    TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K
)  # fmt: skip
BLOCK: Final = 256
# Blocks of each kind of numbers in the proof; odd, so that the last tile is not full.
_PROOF_BLOCKS: Final = 37


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Encodes rows: by the kernel for the types that it has proven, by llama.cpp for the others."""

    kernel: ctypes.CDLL | None
    types: frozenset[TensorType]

    @classmethod
    def prepare(cls, folder: Path) -> Self:
        """Loads or compiles the kernel and proves it; without one everything goes to llama.cpp."""
        try:
            kernel = load_kernel(kernel_library(folder))
        except (CannotBuildError, OSError, AttributeError) as error:
            log.warning("K-quants are encoded by llama.cpp alone, slowly: %s", error)
            return cls(kernel=None, types=frozenset())
        proven = frozenset(kind for kind in TYPES if _is_equal(kernel, kind))
        for kind in sorted(set(TYPES) - proven):
            log.error("the kernel differs from llama.cpp for %s and is not used for it", kind.name)
        return cls(kernel=kernel, types=proven)

    def __call__(self, rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
        """Returns finite rows in a storage type, (rows, bytes of a row)."""
        if self.kernel is None or kind not in self.types:
            return ggml.encode(rows, kind)
        return encode_with(self.kernel, rows, kind)


def load_kernel(path: Path) -> ctypes.CDLL:
    """Loads a compiled kernel.

    Raises:
        OSError, AttributeError: it is not one.
    """
    kernel = ctypes.CDLL(str(path))
    kernel.kquant_encode.restype = ctypes.c_int
    kernel.kquant_encode.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return kernel


def encode_with(
    kernel: ctypes.CDLL, rows: NDArray[np.float32], kind: TensorType
) -> NDArray[np.uint8]:
    """Encodes by the kernel; blocks that it leaves go to the reference."""
    row_count, column_count = rows.shape
    source = np.ascontiguousarray(rows)
    block_count = source.size // BLOCK
    encoded = np.empty((block_count, kind.block_bytes), np.uint8)
    left = np.empty(block_count, np.uint8)
    unknown = kernel.kquant_encode(
        int(kind), source.ctypes.data, encoded.ctypes.data, block_count, left.ctypes.data
    )
    assert not unknown
    places = np.flatnonzero(left)
    if len(places):
        encoded[places] = ggml.encode(source.reshape(block_count, BLOCK)[places], kind)
    return encoded.reshape(row_count, kind.row_bytes(column_count))


def _is_equal(kernel: ctypes.CDLL, kind: TensorType) -> bool:
    return all(
        np.array_equal(encode_with(kernel, rows, kind), ggml.encode(rows, kind))
        for rows in proof_rows(np.random.default_rng(0), block_count=_PROOF_BLOCKS)
    )


def proof_rows(rng: np.random.Generator, *, block_count: int) -> Iterator[NDArray[np.float32]]:
    """Yields rows of one block of every kind that weights, and the worst of weights, come in."""
    shape = (block_count, BLOCK)
    normal = rng.standard_normal(shape, np.float32)
    yield normal
    yield (normal * np.float32(0.02)).astype(np.float16).astype(np.float32)
    yield np.asarray(rng.standard_t(1.5, shape), np.float32)
    yield np.where(rng.random(shape) < 0.9, np.float32(0), normal)
    yield np.repeat(rng.standard_normal((block_count, 16), np.float32), 16, axis=1)
    yield np.abs(normal)
    yield -np.abs(normal)
    yield np.zeros(shape, np.float32)
    yield np.full(shape, np.float32(-0.0))
    yield np.asarray(rng.integers(-4, 5, shape), np.float32)
    # Sub-blocks of very different size, so that some scales vanish beside others.
    sizes = np.float32(10.0) ** rng.integers(-20, 4, (block_count, 16)).astype(np.float32)
    yield normal * np.repeat(sizes, 16, axis=1)
    for size in (1e-42, 1e-38, 1e-20, 1e-15, 1e10, 1e30, 1e37):
        yield normal * np.float32(size)
    bits = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    yield np.where(np.isfinite(bits), bits, np.float32(1))
