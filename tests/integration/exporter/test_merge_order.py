"""Merged rows are the same bits on every processor, and the nearest ones to exact arithmetic.

The slow reference here is `fractions.Fraction`: no floating-point operation takes part in it.
"""

import hashlib
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel import build
from exporter.engine.kernel.kernel import UNQUANTIZED, Kernel
from lexicon.faults import Fault
from tests.integration.exporter.golden_exports import LEVELS

pytestmark = pytest.mark.integration

# Bits behind the point of each type's significand, and the exponent of its smallest step.
PRECISION = {TensorType.BF16: (7, -133), TensorType.F16: (10, -24), TensorType.F32: (23, -149)}
# SHA-256 over the merged rows of `cases`, on whatever machine.
DIGEST = "bd079f23274f784b02c27a555e41b2582dbf35b126d013d1dedd82f0b89cb1ed"


def levels_here() -> list[str]:
    """Instruction sets that this processor has; one on other kinds than x86-64."""
    best = build.architectures_here()
    names = list(LEVELS)
    known = [name for name, options in LEVELS.items() if options in best]
    return names[: 1 + max((names.index(name) for name in known), default=0)]


@pytest.fixture(scope="module")
def kernels(model_cache: Path) -> dict[str, Kernel]:
    """The kernel compiled for every level that runs here, and none at all."""
    folder = model_cache / "gguf" / "kernels"
    made = {name: Kernel.prepare(folder, architectures=[LEVELS[name]]) for name in levels_here()}
    return {**made, "native": Kernel.prepare(folder), "numpy": Kernel.absent()}


def whole_numbers(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Numbers that no mathematical library takes part in: the same everywhere."""
    return rng.integers(-4096, 4097, shape).astype(np.float32) / np.float32(1024)


class Case:
    """Arguments of one merge."""

    def __init__(
        self,
        seed: int,
        *,
        rank: int,
        columns: int,
        kind: TensorType = TensorType.BF16,
        into: TensorType | None = None,
        rows: int = 11,
        with_magnitude: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.kind, self.into = kind, into or kind
        self.base = whole_numbers(rng, rows, columns)
        self.stored = ggml.encode(self.base, kind)
        self.base = ggml.decode(self.stored, kind, column_count=columns)
        self.a, self.b = whole_numbers(rng, rank, columns), whole_numbers(rng, rows, rank)
        self.scale = 16 / float(np.sqrt(rank))
        self.magnitude = np.abs(whole_numbers(rng, rows)) if with_magnitude else None

    def merged(self, kernel: Kernel, rows: slice = slice(None)) -> NDArray[np.float32]:
        return kernel.merge(
            self.stored[rows],
            self.kind,
            a=self.a,
            b=self.b[rows],
            scale=self.scale,
            into=self.into,
            magnitude=None if self.magnitude is None else self.magnitude[rows],
        )

    def exact(self, row: int, column: int) -> Fraction:
        products = (
            Fraction(float(b)) * Fraction(float(a))
            for b, a in zip(self.b[row], self.a[:, column], strict=True)
        )
        return Fraction(float(self.base[row, column])) + sum(products) * Fraction(self.scale)


def cases() -> list[Case]:
    return [
        Case(seed, rank=rank, columns=columns, kind=kind, into=into, with_magnitude=magnitude)
        for seed, (rank, columns, kind, into, magnitude) in enumerate(
            itertools.product((1, 8, 33), (31, 256, 1000), UNQUANTIZED, UNQUANTIZED, (False, True))
        )
    ]


def nearest(value: Fraction, kind: TensorType) -> Fraction:
    """The number of a type that is nearest, ties to even."""
    return round(value / step(value, kind)) * step(value, kind)


def step(value: Fraction, kind: TensorType) -> Fraction:
    """One unit in the last place."""
    bits, smallest = PRECISION[kind]
    exponent = 0
    size = abs(value)
    while size >= 2:
        size, exponent = size / 2, exponent + 1
    while 0 < size < 1:
        size, exponent = size * 2, exponent - 1
    return Fraction(2) ** max(exponent - bits, smallest)


def digest_of(kernel: Kernel) -> str:
    return hashlib.sha256(b"".join(case.merged(kernel).tobytes() for case in cases())).hexdigest()


def test_every_level_gives_the_same_golden_bytes(kernels: dict[str, Kernel]) -> None:
    assert {name: digest_of(kernel) for name, kernel in kernels.items()} == dict.fromkeys(
        kernels, DIGEST
    )


def test_the_compiled_kernels_are_in_use(kernels: dict[str, Kernel]) -> None:
    assert all(kernel.merges for name, kernel in kernels.items() if name != "numpy")


@pytest.mark.parametrize("kind", UNQUANTIZED)
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_every_number_is_the_nearest_to_exact_arithmetic(
    kernels: dict[str, Kernel], kind: TensorType, rank: int
) -> None:
    """Correctly rounded, which is more than the one unit in the last place that is promised."""
    case = Case(rank, rank=rank, columns=64, kind=kind)
    found = case.merged(kernels["native"])
    for row, column in np.ndindex(*found.shape):
        exact = case.exact(row, column)
        assert Fraction(float(found[row, column])) == nearest(exact, kind)


def test_sums_that_cancel_are_the_nearest_too(kernels: dict[str, Kernel]) -> None:
    """Where base and change nearly cancel, float32 sums lose all their digits."""
    case = Case(5, rank=8, columns=64)
    case.scale = 0.5
    case.base = np.array(
        [[-float(case.exact(r, c) - Fraction(float(case.base[r, c]))) for c in range(64)]
         for r in range(len(case.b))], np.float32
    )  # fmt: skip
    case.stored = ggml.encode(case.base, TensorType.BF16)
    case.base = ggml.decode(case.stored, TensorType.BF16, column_count=64)
    found = case.merged(kernels["native"])
    for row, column in np.ndindex(*found.shape):
        exact = case.exact(row, column)
        assert Fraction(float(found[row, column])) == nearest(exact, TensorType.BF16)


def test_fewer_numbers_are_off_than_in_peft_s_own_merge(kernels: dict[str, Kernel]) -> None:
    """None of ours are; PEFT sums in float32, and a few of its roundings fall on the other side."""
    case = Case(7, rank=64, columns=128, rows=24)
    case.scale = 0.25
    ours, theirs = case.merged(kernels["native"]), merged_by_peft(case)
    wanted = np.array(
        [[float(nearest(case.exact(r, c), TensorType.BF16)) for c in range(128)]
         for r in range(24)], np.float32
    )  # fmt: skip
    assert not np.any(ours != wanted)
    one_step = np.abs(wanted) * np.float32(2.0**-7) + np.float32(2.0**-20)
    assert np.all(np.abs(theirs - wanted) <= one_step)


@pytest.mark.parametrize("with_magnitude", [False, True])
@pytest.mark.parametrize(("rank", "columns"), [(1, 768), (64, 1000), (256, 33)])
def test_a_row_is_merged_alike_alone_and_among_others(
    kernels: dict[str, Kernel], rank: int, columns: int, with_magnitude: bool
) -> None:
    """Rows are written in blocks and read back one by one; both must be the same numbers."""
    case = Case(rank, rank=rank, columns=columns, rows=300, with_magnitude=with_magnitude)
    for kernel in (kernels["native"], kernels["numpy"]):
        whole = case.merged(kernel)
        for first, count in ((0, 1), (3, 2), (17, 5), (299, 1)):
            part = slice(first, first + count)
            assert np.array_equal(case.merged(kernel, part), whole[part])


@pytest.mark.parametrize("kind", UNQUANTIZED)
@pytest.mark.parametrize("into", UNQUANTIZED)
@pytest.mark.parametrize("place", [(0, 0), (4, 300)])
def test_a_number_that_is_not_finite_is_refused(
    kernels: dict[str, Kernel], kind: TensorType, into: TensorType, place: tuple[int, int]
) -> None:
    """Wherever it lies, in full vectors and behind them."""
    stored = ggml.encode(np.zeros((5, 301), np.float32), kind)
    a, b = np.zeros((1, 301), np.float32), np.zeros((5, 1), np.float32)
    b[place[0]], a[0, place[1]] = np.float32(1e30), np.float32(1e30)
    for kernel in kernels.values():
        with pytest.raises(Fault, match="finite"):
            kernel.merge(stored, kind, a=a, b=b, scale=1.0, into=into)


@pytest.mark.parametrize("kind", UNQUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_base_that_is_not_finite_is_refused(
    kernels: dict[str, Kernel], kind: TensorType, bad: float
) -> None:
    rows = np.zeros((1, 33), np.float32)
    rows[0, 32] = bad
    stored: Any = rows.view(np.uint16)[:, 1::2] if kind is TensorType.BF16 else rows
    stored = np.ascontiguousarray(stored.astype(np.float16) if kind is TensorType.F16 else stored)
    zeros = np.zeros((1, 1), np.float32)
    for kernel in kernels.values():
        with pytest.raises(Fault, match="finite"):
            kernel.merge(
                stored.view(np.uint8), kind, a=np.zeros((1, 33), np.float32), b=zeros, scale=1.0,
                into=kind,
            )  # fmt: skip


def merged_by_peft(case: Case) -> NDArray[np.float32]:
    """What a linear layer holds after `merge_and_unload`."""
    rows, columns = case.base.shape
    model = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16))
    rank = len(case.a)
    config = peft.LoraConfig(r=rank, lora_alpha=round(case.scale * rank), target_modules=["0"])
    wrapped: Any = peft.get_peft_model(model, config)
    layer = wrapped.base_model.model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.from_numpy(case.base.copy()))
        layer.lora_A["default"].weight.copy_(torch.from_numpy(case.a))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(case.b))
    merged = wrapped.merge_and_unload()[0].weight
    return np.asarray(merged.detach().float().numpy(), np.float32)
