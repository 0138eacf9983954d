"""`python -m tests.bench.kquant [--elements N]`: our K-quant kernel against llama.cpp's own.

Both encode the same rows in one thread, in turns; what counts is processor time, so that other work
on the machine weighs on neither. Afterwards every byte is compared over N more numbers of each type
(`--elements 1000000000` is the whole proof, some minutes of all cores), made and dropped batch by
batch: random weights of many sizes and, with every tenth batch, zeros, constants, denormals, huge
numbers and random bit patterns. Numbers that are not finite must be refused before any encoding.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel.kernel import TYPES, Kernel, proof_rows
from lexicon.faults import Fault
from tests.bench import frame

GOALS = {
    TensorType.Q4_K: 6.0,
    TensorType.Q5_K: 4.0,
    TensorType.Q6_K: 4.0,
    TensorType.Q3_K: 1.0,
    TensorType.Q2_K: 1.0,
}
STRETCH_Q4_K = 10.0
ROUNDS = 9
TIMED_SHAPE = (256, 4096)
BATCH_SHAPE = (512, 4096)
BATCH_ELEMENTS = 512 * 4096
EDGES_EVERY = 10
EDGE_BLOCKS = 512
TELL_EVERY = 40_000_000


def main() -> None:
    """Measure, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--elements", type=int, default=20_000_000, help="numbers to compare of each type"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel.prepare(Path(folder))
        speeds = {kind: _speeds(kernel, kind) for kind in TYPES}
        compared = {kind: _compare(kernel, kind, arguments.elements) for kind in TYPES}
        refused, offered = _refusals(kernel)
    ours, theirs, ratio = speeds[TensorType.Q4_K]
    differing = sum(found.differing for found in compared.values())
    reached = all(speeds[kind][2] >= goal for kind, goal in GOALS.items())
    frame.finish(
        frame.Result(
            bench="kquant",
            value=ours,
            unit="million elements/s per thread, Q4_K",
            peer={"name": "ggml_quantize_chunk", "value": round(theirs, 1)},
            ratio=ratio,
            goal="Q4_K >= 6x (stretch 10x), Q5_K and Q6_K >= 4x, no byte differs",
            passed=reached
            and differing == 0
            and kernel.types == frozenset(TYPES)
            and refused == offered,
            proof={
                "ratios": {kind.name: round(speeds[kind][2], 2) for kind in TYPES},
                "stretch_reached": ratio >= STRETCH_Q4_K,
                "elements_compared": {kind.name: compared[kind].elements for kind in TYPES},
                "of_them_edge_cases": {kind.name: compared[kind].edges for kind in TYPES},
                "blocks_differing": differing,
                "not_finite_refused": f"{refused} of {offered}",
            },
        )
    )


def _speeds(kernel: Kernel, kind: TensorType) -> tuple[float, float, float]:
    """Median million elements per second of ours and of the reference, and the ratio."""
    rows = np.random.default_rng(0).standard_normal(TIMED_SHAPE, np.float32) * np.float32(0.02)

    def seconds(encode: Callable[[], object]) -> float:
        begin = time.thread_time()
        encode()
        return time.thread_time() - begin

    pairs = []
    for _ in range(ROUNDS):
        ours = seconds(lambda: kernel.encode(rows, kind))
        theirs = seconds(lambda: ggml.encode(rows, kind))
        pairs.append((ours, theirs))
    ours = rows.size / statistics.median(pair[0] for pair in pairs) / 1e6
    theirs = rows.size / statistics.median(pair[1] for pair in pairs) / 1e6
    ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
    frame.progress(f"{kind.name}: {ours:.1f} against {theirs:.1f} M elements/s, {ratio:.2f} x")
    return ours, theirs, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How many numbers were encoded by both, how many of them edge cases, blocks that differ."""

    elements: int
    edges: int
    differing: int

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(
            elements=self.elements + other.elements,
            edges=self.edges + other.edges,
            differing=self.differing + other.differing,
        )


def _compare(kernel: Kernel, kind: TensorType, elements: int) -> Compared:
    """Compares batch after batch on all cores; no batch outlives its turn."""
    found = Compared(elements=0, edges=0, differing=0)
    seeds = range(-(-elements // BATCH_ELEMENTS))
    told = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for part in pool.map(lambda seed: _batch(kernel, kind, seed), seeds):
            found += part
            if found.elements >= told:
                told += TELL_EVERY
                frame.progress(
                    f"{kind.name}: {found.elements / 1e6:.0f} of {elements / 1e6:.0f} M elements, "
                    f"{found.differing} blocks differ"
                )
    return found


def _batch(kernel: Kernel, kind: TensorType, seed: int) -> Compared:
    """One batch of random weights; every tenth brings edge cases with it, each time others."""
    rng = np.random.default_rng((int(kind), seed))
    rows = rng.standard_normal(BATCH_SHAPE, np.float32)
    rows *= np.float32(10.0) ** rng.uniform(-4, 1, (BATCH_SHAPE[0], 1)).astype(np.float32)
    if seed % 2:
        # As weights come: rounded to bfloat16.
        rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    differing, elements, edges = _difference(kernel, kind, rows), rows.size, 0
    if seed % EDGES_EVERY == 0:
        for edge in proof_rows(rng, block_count=EDGE_BLOCKS):
            differing += _difference(kernel, kind, edge)
            edges += edge.size
    return Compared(elements=elements + edges, edges=edges, differing=differing)


def _refusals(kernel: Kernel) -> tuple[int, int]:
    """How many merges with one number that is not finite are refused, and how many there were."""
    rng = np.random.default_rng(0)
    refused = offered = 0
    zero_a, zero_b = np.zeros((1, 256), np.float32), np.zeros((4, 1), np.float32)
    for stored in (TensorType.F32, TensorType.BF16, TensorType.F16):
        for bad in (np.nan, np.inf, -np.inf):
            for place in range(0, 1024, 7):
                rows = rng.standard_normal((4, 256), np.float32)
                rows.flat[place] = bad
                offered += 1
                try:
                    base = _stored(rows, stored)
                    kernel.merge(base, stored, a=zero_a, b=zero_b, scale=1.0, into=stored)
                except Fault:
                    refused += 1
    return refused, offered


def _stored(rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
    if kind is TensorType.BF16:
        return (rows.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return rows.astype(np.float16 if kind is TensorType.F16 else np.float32).view(np.uint8)


def _difference(kernel: Kernel, kind: TensorType, rows: NDArray[np.float32]) -> int:
    ours = kernel.encode(rows, kind).reshape(-1, kind.block_bytes)
    theirs = ggml.encode(rows, kind).reshape(-1, kind.block_bytes)
    return int((ours != theirs).any(axis=1).sum())


if __name__ == "__main__":
    main()
