"""`python -m tests.bench.kquant [--elements N]`: our K-quant kernel against llama.cpp's own.

Both encode the same rows in one thread, in turns whose order alternates; what counts is processor
time, so that other work on the machine weighs on neither. llama.cpp compiles the library that
quantises (ggml-base) for every x86-64 processor, and nothing of it for the one at hand; so a second
peer is the same source compiled for the instruction set that our kernel uses.
Afterwards every byte is compared over N more numbers of each type (`--elements 1000000000` is the
whole proof, some minutes of all cores), made and dropped batch by batch: random weights of many
sizes and, with every tenth batch, zeros, constants, denormals, huge numbers and random bit
patterns. Numbers that are not finite must be refused before any encoding.
"""

import argparse
import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.local import llama_build, places
from deploy.local.tool import Progress
from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.kernel import build
from exporter.engine.kernel.kernel import TYPES, Kernel, proof_rows
from lexicon.faults import Fault
from tests.bench import frame

GOALS = {
    TensorType.Q4_K: 6.0,
    TensorType.Q5_K: 4.0,
    TensorType.Q6_K: 4.0,
    TensorType.Q3_K: 4.0,
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
        base = _base_for_here(Path(folder))
        speeds = {kind: _speeds(kernel, kind, base) for kind in TYPES}
        compared = {kind: _compare(kernel, kind, arguments.elements) for kind in TYPES}
        refused, offered = _refusals(kernel)
    fast = speeds[TensorType.Q4_K]
    differing = sum(found.differing for found in compared.values())
    reached = all(speeds[kind].ratio >= goal for kind, goal in GOALS.items())
    frame.finish(
        frame.Result(
            bench="kquant",
            value=fast.ours,
            unit="million elements/s per thread, Q4_K",
            peer={"name": "ggml_quantize_chunk as llama.cpp builds it", "value": fast.theirs},
            ratio=fast.ratio,
            goal="Q4_K >= 6x (stretch 10x), Q3_K, Q5_K and Q6_K >= 4x, no byte differs",
            passed=reached
            and differing == 0
            and kernel.types == frozenset(TYPES)
            and refused == offered,
            proof={
                "million_elements_per_second": {
                    kind.name: {
                        "ours": speeds[kind].ours,
                        "llama.cpp": speeds[kind].theirs,
                        "llama.cpp for this processor": speeds[kind].theirs_here,
                    }
                    for kind in TYPES
                },
                "ratios": {kind.name: round(speeds[kind].ratio, 2) for kind in TYPES},
                "ratios_for_this_processor": {
                    kind.name: round(speeds[kind].ratio_here, 2) for kind in TYPES
                },
                "threads_of_each": 1,
                "rounds": ROUNDS,
                "stretch_reached": fast.ratio >= STRETCH_Q4_K,
                "elements_compared": {kind.name: compared[kind].elements for kind in TYPES},
                "of_them_edge_cases": {kind.name: compared[kind].edges for kind in TYPES},
                "blocks_differing": differing,
                "not_finite_refused": f"{refused} of {offered}",
            },
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Median million elements per second, and the medians of the ratios within a round."""

    ours: float
    theirs: float
    theirs_here: float
    ratio: float
    ratio_here: float


def _speeds(kernel: Kernel, kind: TensorType, base: ctypes.CDLL) -> Speeds:
    rows = np.random.default_rng(0).standard_normal(TIMED_SHAPE, np.float32) * np.float32(0.02)
    contenders: list[Callable[[], object]] = [
        lambda: kernel.encode(rows, kind),
        lambda: ggml.encode(rows, kind),
        lambda: ggml.quantized(base, rows, kind),
    ]
    seconds = np.empty((ROUNDS, len(contenders)))
    for number in range(-1, ROUNDS):
        # The first round warms all of them up and is overwritten.
        for turn in range(len(contenders)):
            place = (turn + number) % len(contenders)
            begin = time.thread_time()
            contenders[place]()
            seconds[number, place] = time.thread_time() - begin
    ours, theirs, here = (
        round(rows.size / float(middle) / 1e6, 1) for middle in np.median(seconds, axis=0)
    )
    ratio, ratio_here = (float(np.median(seconds[:, peer] / seconds[:, 0])) for peer in (1, 2))
    frame.progress(
        f"{kind.name}: {ours} against {theirs} M elements/s, {ratio:.2f} x; against {here} of a "
        f"build for this processor, {ratio_here:.2f} x"
    )
    return Speeds(ours=ours, theirs=theirs, theirs_here=here, ratio=ratio, ratio_here=ratio_here)


def _base_for_here(scratch: Path) -> ctypes.CDLL:
    """ggml-base of the pinned llama.cpp, compiled with the options that our kernel gets here."""
    frame.progress("compiling llama.cpp's quantisation for this processor")
    source = llama_build._source(scratch, Progress(), scratch) / "vendor" / "llama.cpp"
    cmake = places.environment_folder() / "bin" / "cmake"
    flags = " ".join((llama_build.COMPILE_FLAGS, *build.architectures_here()[0]))
    options = [
        option
        for option in llama_build.CMAKE_OPTIONS
        if not option.startswith(("-DCMAKE_C_FLAGS", "-DCMAKE_CXX_FLAGS"))
    ]
    compiled = scratch / "compiled"
    commands: list[list[str | Path]] = [
        [cmake, "-S", source, "-B", compiled, *options, f"-DCMAKE_C_FLAGS={flags}",
         f"-DCMAKE_CXX_FLAGS={flags}"],
        [cmake, "--build", compiled, "--target", "ggml-base", "--parallel", "2"],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return ggml.load_base(next(compiled.rglob("libggml-base.*")))


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
