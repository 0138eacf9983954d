"""The kernel gives llama.cpp's bytes, and steps aside where it cannot."""

from pathlib import Path

import numpy as np
import pytest

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel import build
from exporter.engine.kernel.kernel import TYPES, Kernel, merge_slowly, proof_rows
from lexicon.faults import Fault

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kernel(model_cache: Path) -> Kernel:
    return Kernel.prepare(model_cache / "gguf" / "kernels")


def test_the_kernel_is_proven_for_every_k_quant(kernel: Kernel) -> None:
    assert kernel.types == frozenset(TYPES)
    assert kernel.merges


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_byte_is_the_reference_s(kernel: Kernel, kind: TensorType, seed: int) -> None:
    """Also of zeros, constants, denormals, huge numbers and random bit patterns."""
    rng = np.random.default_rng(seed)
    for rows in proof_rows(rng, block_count=1 + 60 * seed):
        assert np.array_equal(kernel.encode(rows, kind), ggml.encode(rows, kind))


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_several_blocks_keep_their_place(kernel: Kernel, kind: TensorType) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 768), np.float32)
    assert np.array_equal(kernel.encode(rows, kind), ggml.encode(rows, kind))
    transposed = np.asfortranarray(rows)
    assert np.array_equal(kernel.encode(transposed, kind), ggml.encode(rows, kind))


def test_other_types_go_to_the_reference(kernel: Kernel) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 256), np.float32)
    for kind in (TensorType.Q8_0, TensorType.Q5_0, TensorType.F16):
        assert np.array_equal(kernel.encode(rows, kind), ggml.encode(rows, kind))


def test_without_a_compiler_the_reference_does_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    kernel = Kernel.prepare(tmp_path)
    rows = np.random.default_rng(0).standard_normal((2, 256), np.float32)
    assert kernel.types == frozenset()
    assert np.array_equal(kernel.encode(rows, TensorType.Q4_K), ggml.encode(rows, TensorType.Q4_K))


def test_a_second_start_finds_the_kernel_compiled(tmp_path: Path) -> None:
    first = build.kernel_library(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build.kernel_library(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.F32, TensorType.F16])
@pytest.mark.parametrize("rank", [1, 5, 16, 256])
@pytest.mark.parametrize("columns", [32, 288, 1000])
def test_merged_rows_are_numpy_s(kernel: Kernel, kind: TensorType, rank: int, columns: int) -> None:
    rng = np.random.default_rng(rank)
    base = ggml.encode(rng.standard_normal((7, columns), np.float32), kind)
    a = rng.standard_normal((rank, columns), np.float32)
    b = rng.standard_normal((7, rank), np.float32)
    ours = kernel.merge(base, kind, a=a, b=b, scale=0.7)
    assert np.array_equal(ours, merge_slowly(base, kind, a=a, b=b, scale=0.7))


@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.F32, TensorType.F16])
def test_a_number_that_is_not_finite_is_refused(kernel: Kernel, kind: TensorType) -> None:
    base = ggml.encode(np.zeros((4, 256), np.float32), kind)
    a = np.full((1, 256), np.float32(1e30))
    b = np.full((4, 1), np.float32(1e30))
    with pytest.raises(Fault, match="finite"):
        kernel.merge(base, kind, a=a, b=b, scale=1.0)


@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.F32, TensorType.F16])
@pytest.mark.parametrize("rank", [1, 7, 64, 256])
@pytest.mark.parametrize("columns", [768, 1000])
def test_a_row_is_merged_alike_alone_and_among_others(
    kernel: Kernel, kind: TensorType, rank: int, columns: int
) -> None:
    """Rows are written in blocks and read back one by one; both must be the same numbers."""
    rng = np.random.default_rng(rank)
    base = ggml.encode(rng.standard_normal((300, columns), np.float32), kind)
    a = rng.standard_normal((rank, columns), np.float32)
    b = rng.standard_normal((300, rank), np.float32)
    for merge in (kernel.merge, merge_slowly):
        whole = merge(base, kind, a=a, b=b, scale=0.7)
        for first, count in ((0, 1), (3, 2), (17, 5), (299, 1)):
            part = slice(first, first + count)
            assert np.array_equal(merge(base[part], kind, a=a, b=b[part], scale=0.7), whole[part])
