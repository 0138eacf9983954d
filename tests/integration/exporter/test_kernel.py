"""The kernel gives llama.cpp's bytes, and steps aside where it cannot."""

from pathlib import Path

import numpy as np
import pytest

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel import build
from exporter.engine.kernel.kernel import TYPES, Kernel, proof_rows

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
