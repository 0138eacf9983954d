"""`python -m tests.bench.kquant [--elements N]`: our K-quant kernel against llama.cpp's own.

Both encode the same rows in one thread, in turns; what counts is processor time, so that other work
on the machine weighs on neither. Afterwards every byte is compared over many more numbers, among
them zeros, constants, denormals, huge numbers and random bit patterns.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel.kernel import TYPES, Kernel, proof_rows
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
BATCH_ROWS = 512
BATCH_COLUMNS = 4096
EDGE_BLOCKS = 1024


def main() -> None:
    """Measure, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=10**9, help="numbers to compare in all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel.prepare(Path(folder))
        speeds = {kind: _speeds(kernel, kind) for kind in TYPES}
        compared = {kind.name: _compare(kernel, kind, arguments.elements) for kind in TYPES}
    ratios = {kind.name: round(ratio, 2) for kind, (_, _, ratio) in speeds.items()}
    ours, theirs, ratio = speeds[TensorType.Q4_K]
    differing = sum(count for _, count in compared.values())
    reached = all(speeds[kind][2] >= goal for kind, goal in GOALS.items())
    frame.finish(
        frame.Result(
            bench="kquant",
            value=ours,
            unit="million elements/s per thread, Q4_K",
            peer={"name": "ggml_quantize_chunk", "value": round(theirs, 1)},
            ratio=ratio,
            goal="Q4_K >= 6x (stretch 10x), Q5_K and Q6_K >= 4x, no byte differs",
            passed=reached and differing == 0 and kernel.types == frozenset(TYPES),
            proof={
                "ratios": ratios,
                "stretch_reached": ratio >= STRETCH_Q4_K,
                "elements_compared": sum(count for count, _ in compared.values()),
                "blocks_differing": differing,
                "by_type": {name: count for name, (count, _) in compared.items()},
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


def _compare(kernel: Kernel, kind: TensorType, elements: int) -> tuple[int, int]:
    """Numbers compared and blocks that differ, over edge cases first and random weights then."""
    wanted = elements // len(TYPES)
    compared = differing = 0
    for rows in proof_rows(np.random.default_rng(7), block_count=EDGE_BLOCKS):
        differing += _difference(kernel, kind, rows)
        compared += rows.size
    batch = BATCH_ROWS * BATCH_COLUMNS
    seeds = range(max(0, -(-(wanted - compared) // batch)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for number, found in enumerate(pool.map(lambda s: _random_batch(kernel, kind, s), seeds)):
            differing += found
            compared += batch
            if number % 20 == 0:
                frame.progress(f"{kind.name}: {compared / 1e6:.0f} M elements, {differing} differ")
    return compared, differing


def _random_batch(kernel: Kernel, kind: TensorType, seed: int) -> int:
    rng = np.random.default_rng((int(kind), seed))
    rows = rng.standard_normal((BATCH_ROWS, BATCH_COLUMNS), np.float32)
    rows *= np.float32(10.0) ** rng.uniform(-4, 1, (BATCH_ROWS, 1)).astype(np.float32)
    if seed % 2:
        # As weights come: rounded to bfloat16.
        rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return _difference(kernel, kind, rows)


def _difference(kernel: Kernel, kind: TensorType, rows: NDArray[np.float32]) -> int:
    ours = kernel.encode(rows, kind).reshape(-1, kind.block_bytes)
    theirs = ggml.encode(rows, kind).reshape(-1, kind.block_bytes)
    return int((ours != theirs).any(axis=1).sum())


if __name__ == "__main__":
    main()
