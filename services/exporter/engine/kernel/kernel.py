"""The kernel in use: proven against the reference before its first real block, part by part."""

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
from exporter.engine.kernel.build import CannotBuildError, kernel_library
from exporter.engine.weights import to_bfloat16_bits
from lexicon.faults import Fault, FaultCode

log = logging.getLogger(__name__)

TYPES: Final = (
    TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K
)  # fmt: skip
BLOCK: Final = 256
# Blocks of each kind of numbers in the proof; odd, so that the last tile is not full.
_PROOF_BLOCKS: Final = 37
_PROOF_RANKS: Final = (1, 7, 16, 64)
# Floats in the widest vectors that a BLAS sums in.
_VECTOR_COLUMNS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Encodes and merges rows: by compiled code where that is proven, by the reference else."""

    library: ctypes.CDLL | None
    types: frozenset[TensorType]
    merges: bool

    @classmethod
    def prepare(cls, folder: Path) -> Self:
        """Loads or compiles the kernel and proves it; without one the reference does everything."""
        try:
            library = load_library(kernel_library(folder))
        except (CannotBuildError, OSError, AttributeError) as error:
            log.warning("exports run without the compiled kernel, slowly: %s", error)
            return cls(library=None, types=frozenset(), merges=False)
        proven = frozenset(kind for kind in TYPES if _encodes_equally(library, kind))
        for kind in sorted(set(TYPES) - proven):
            log.error("the kernel differs from llama.cpp for %s and is not used for it", kind.name)
        merges = bool(library.merge_is_available()) and _merges_equally(library)
        return cls(library=library, types=proven, merges=merges)

    def encode(self, rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
        """Returns finite rows in a storage type, (rows, bytes of a row)."""
        if self.library is None or kind not in self.types:
            return ggml.encode(rows, kind)
        return _encode(self.library, rows, kind)

    def merge(
        self,
        stored: NDArray[np.uint8],
        kind: TensorType,
        *,
        a: NDArray[np.float32],
        b: NDArray[np.float32],
        scale: float,
    ) -> NDArray[np.float32]:
        """Returns stored rows + scale · B · A as float32, rounded to the stored type.

        Args:
            stored: rows as they lie in the file, (rows, bytes of a row).
            a: (rank, columns).
            b: (rows, rank).
        Raises:
            Fault: MODEL_WEIGHTS_INVALID when a number that comes out is not finite.
        """
        fits = kind in {TensorType.BF16, TensorType.F32}
        if self.library is None or not self.merges or not fits:
            return merge_slowly(stored, kind, a=a, b=b, scale=scale)
        if a.shape[1] % self.library.merge_column_step() != 0:
            return merge_slowly(stored, kind, a=a, b=b, scale=scale)
        return _merge(self.library, stored, kind, a=a, b=b, scale=scale)


def load_library(path: Path) -> ctypes.CDLL:
    """Loads a compiled kernel.

    Raises:
        OSError, AttributeError: it is not one.
    """
    library = ctypes.CDLL(str(path))
    library.kquant_encode.restype = ctypes.c_int
    library.kquant_encode.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    library.merge_rows_of_base.restype = ctypes.c_int
    library.merge_rows_of_base.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float,
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
    ]  # fmt: skip
    return library


def merge_slowly(
    stored: NDArray[np.uint8],
    kind: TensorType,
    *,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scale: float,
) -> NDArray[np.float32]:
    """What `Kernel.merge` computes, in numpy: PEFT's own order of operations."""
    base = ggml.decode(stored, kind, column_count=a.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        merged = base + product(b, a) * np.float32(scale)
    return rounded(merged, kind)


def product(b: NDArray[np.float32], a: NDArray[np.float32]) -> NDArray[np.float32]:
    """B · A, each number summed in the order of the rank.

    BLAS takes other orders at the edges: for a single row, and for the columns that do not fill a
    vector. Rows would then depend on how many of them are asked for at once, hence the padding.
    Source: measured with OpenBLAS of numpy 2; torch sums in this order up to rank 192, above which
    its BLAS takes the rank in parts that depend on the processor.
    """
    row_count, column_count = len(b), a.shape[1]
    if row_count == 1:
        b = np.repeat(b, 2, axis=0)
    if column_count % _VECTOR_COLUMNS:
        a = np.pad(a, ((0, 0), (0, -column_count % _VECTOR_COLUMNS)))
    whole: NDArray[np.float32] = b @ a
    return whole[:row_count, :column_count]


def rounded(rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.float32]:
    """What remains of numbers once they have been stored in an unquantised type.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID when one is not finite.
    """
    match kind:
        case TensorType.BF16:
            kept = (to_bfloat16_bits(rows).astype(np.uint32) << 16).view(np.float32)
        case TensorType.F16:
            kept = ggml.to_float16(rows).astype(np.float32)
        case _:
            kept = rows
    if not (np.isfinite(rows).all() and np.isfinite(kept).all()):
        raise _not_finite()
    return kept


def _encode(library: ctypes.CDLL, rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
    """Encodes by the kernel; blocks that it leaves go to the reference."""
    row_count, column_count = rows.shape
    source = np.ascontiguousarray(rows)
    block_count = source.size // BLOCK
    encoded = np.empty((block_count, kind.block_bytes), np.uint8)
    left = np.empty(block_count, np.uint8)
    unknown = library.kquant_encode(
        int(kind), source.ctypes.data, encoded.ctypes.data, block_count, left.ctypes.data
    )
    assert not unknown
    places = np.flatnonzero(left)
    if len(places):
        encoded[places] = ggml.encode(source.reshape(block_count, BLOCK)[places], kind)
    return encoded.reshape(row_count, kind.row_bytes(column_count))


def _merge(
    library: ctypes.CDLL,
    stored: NDArray[np.uint8],
    kind: TensorType,
    *,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scale: float,
) -> NDArray[np.float32]:
    base, first, second = (np.ascontiguousarray(part) for part in (stored, a, b))
    out = np.empty((len(b), a.shape[1]), np.float32)
    is_broken = library.merge_rows_of_base(
        int(kind), base.ctypes.data, first.ctypes.data, second.ctypes.data, scale,
        out.ctypes.data, *out.shape, len(a),
    )  # fmt: skip
    if is_broken:
        raise _not_finite()
    return out


def _encodes_equally(library: ctypes.CDLL, kind: TensorType) -> bool:
    return all(
        np.array_equal(_encode(library, rows, kind), ggml.encode(rows, kind))
        for rows in proof_rows(np.random.default_rng(0), block_count=_PROOF_BLOCKS)
    )


def _merges_equally(library: ctypes.CDLL) -> bool:
    """Compares with numpy, whose matrix product also sums over the rank in order."""
    rng = np.random.default_rng(0)
    for rank in _PROOF_RANKS:
        a = rng.standard_normal((rank, 2 * BLOCK), np.float32)
        b = rng.standard_normal((_PROOF_BLOCKS, rank), np.float32)
        base = rng.standard_normal((_PROOF_BLOCKS, 2 * BLOCK), np.float32)
        for kind in (TensorType.BF16, TensorType.F32):
            stored = ggml.encode(base, kind)
            ours = _merge(library, stored, kind, a=a, b=b, scale=0.37)
            if not np.array_equal(ours, merge_slowly(stored, kind, a=a, b=b, scale=0.37)):
                log.error("the kernel merges otherwise than numpy at rank %d and is not used", rank)
                return False
    return True


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
    yield np.repeat(rng.standard_normal((block_count, 1), np.float32), BLOCK, axis=1)
    yield np.asarray(rng.integers(-4, 5, shape), np.float32)
    # Sub-blocks of very different size, so that some scales vanish beside others.
    sizes = np.float32(10.0) ** rng.integers(-20, 4, (block_count, 16)).astype(np.float32)
    yield normal * np.repeat(sizes, 16, axis=1)
    for size in (1e-42, 1e-38, 1e-20, 1e-15, 1e10, 1e30, 1e37):
        yield normal * np.float32(size)
    bits = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    yield np.where(np.isfinite(bits), bits, np.float32(1))


def _not_finite() -> Fault:
    return Fault(FaultCode.MODEL_WEIGHTS_INVALID, "A merged weight is not a finite number.")
