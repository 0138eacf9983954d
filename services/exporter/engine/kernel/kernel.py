"""The kernel in use: proven against the reference before its first real block, part by part."""

import ctypes
import itertools
import logging
from collections.abc import Iterator, Sequence
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
# Not a multiple of any vector, so that the last columns of a row are merged as well.
_PROOF_COLUMNS: Final = 301
UNQUANTIZED: Final = (TensorType.BF16, TensorType.F16, TensorType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Encodes and merges rows: by compiled code where that is proven, by the reference else."""

    library: ctypes.CDLL | None
    types: frozenset[TensorType]
    merges: bool

    @classmethod
    def absent(cls) -> Self:
        """Without compiled code: llama.cpp encodes and numpy merges, to the same bytes."""
        return cls(library=None, types=frozenset(), merges=False)

    @classmethod
    def prepare(
        cls, folder: Path, *, architectures: Sequence[tuple[str, ...]] | None = None
    ) -> Self:
        """Loads or compiles the kernel and proves it; without one the reference does everything.

        Args:
            architectures: see `kernel_library`.
        """
        try:
            library = load_library(kernel_library(folder, architectures=architectures))
        except (CannotBuildError, OSError, AttributeError) as error:
            log.warning("exports run without the compiled kernel, slowly: %s", error)
            return cls.absent()
        proven = frozenset(kind for kind in TYPES if _encodes_equally(library, kind))
        for kind in sorted(set(TYPES) - proven):
            log.error("the kernel differs from llama.cpp for %s and is not used for it", kind.name)
        return cls(library=library, types=proven, merges=_merges_equally(library))

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
        into: TensorType,
        magnitude: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Returns stored rows + scale · B · A as float32, rounded once to the type `into`.

        Args:
            stored: rows as they lie in the file, (rows, bytes of a row).
            a: (rank, columns).
            b: (rows, rank).
            magnitude: (rows), the lengths to which DoRA stretches the rows.
        Raises:
            Fault: MODEL_WEIGHTS_INVALID when a number that comes out is not finite.
        """
        change = _Change(a=a, b=b, scale=scale, into=into, magnitude=magnitude)
        if self.library is None or not self.merges or kind.is_quantized:
            return _merge_in_numpy(stored, kind, change)
        return _merge(self.library, stored, kind, change)


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
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64,
    ]  # fmt: skip
    return library


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """Arguments of `Kernel.merge`."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    into: TensorType
    magnitude: NDArray[np.float32] | None


def _merge_in_numpy(
    stored: NDArray[np.uint8], kind: TensorType, change: _Change
) -> NDArray[np.float32]:
    """What merge.cc computes, operation by operation, for machines without the kernel.

    No BLAS takes part: its order of summation depends on the processor and on the shape. The
    product of two float32 is exact in float64, so that multiplying and adding one after the other
    gives what a fused multiply-add gives.
    """
    a, b = change.a.astype(np.float64), change.b.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total = np.zeros((len(b), a.shape[1]), np.float64)
        for k in range(len(a)):
            total += np.multiply.outer(b[:, k], a[k])
        base = ggml.decode(stored, kind, column_count=a.shape[1])
        values = base + total * change.scale
        if change.magnitude is not None:
            # A cumulative sum is the only sum of numpy that adds one number after the other.
            norms = np.sqrt(np.cumsum(values * values, axis=1)[:, -1])
            values *= (change.magnitude / norms)[:, None]
        return _rounded_once(values, change.into)


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


def _rounded_once(values: NDArray[np.float64], kind: TensorType) -> NDArray[np.float32]:
    """Numbers rounded to an unquantised type, to nearest and ties to even.

    Going by float32 would round twice. So a number between two floats becomes the one of them whose
    last bit is odd, after which the second rounding gives what a single one gives.
    Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved
    algorithms using rounding to odd".
    """
    near = values.astype(np.float32)
    if kind is TensorType.F32:
        return rounded(near, kind)
    bits = near.view(np.uint32)
    size, near_size = np.abs(values), np.abs(near.astype(np.float64))
    is_even = ~bits & np.uint32(1)
    odd = bits + is_even * (size > near_size) - is_even * (size < near_size)
    return rounded(odd.astype(np.uint32).view(np.float32), kind)


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
    library: ctypes.CDLL, stored: NDArray[np.uint8], kind: TensorType, change: _Change
) -> NDArray[np.float32]:
    base, a, b = (np.ascontiguousarray(part) for part in (stored, change.a, change.b))
    out = np.empty((len(b), a.shape[1]), np.float32)
    magnitude = None if change.magnitude is None else np.ascontiguousarray(change.magnitude)
    is_broken = library.merge_rows_of_base(
        int(kind), int(change.into), base.ctypes.data, a.ctypes.data, b.ctypes.data, change.scale,
        None if magnitude is None else magnitude.ctypes.data, out.ctypes.data, *out.shape, len(a),
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
    """Compares every bit with numpy's for all types, with and without DoRA."""
    rng = np.random.default_rng(0)
    shape = (_PROOF_BLOCKS, _PROOF_COLUMNS)
    for rank, kind, into in itertools.product(_PROOF_RANKS, UNQUANTIZED, UNQUANTIZED):
        stored = ggml.encode(rng.standard_normal(shape, np.float32), kind)
        for magnitude in (None, np.abs(rng.standard_normal(len(stored), np.float32))):
            change = _Change(
                a=rng.standard_normal((rank, _PROOF_COLUMNS), np.float32),
                b=rng.standard_normal((_PROOF_BLOCKS, rank), np.float32),
                scale=0.37,
                into=into,
                magnitude=magnitude,
            )
            ours = _merge(library, stored, kind, change)
            if not np.array_equal(
                ours.view(np.uint32), _merge_in_numpy(stored, kind, change).view(np.uint32)
            ):
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
