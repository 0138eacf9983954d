"""The kernel on a processor that is not at hand: `python -m tests.chaos.other_processors`.

Compiles the kernel for another processor, runs it in an emulator, and compares every byte of merged
rows and of encoded blocks with those of this machine's kernel. On Debian, for arm64:
`apt install g++-aarch64-linux-gnu qemu-user-static`.
The last line is JSON; exit 0 means that no byte differs.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine.kernel import build
from exporter.engine.kernel.kernel import TYPES, Kernel, proof_rows
from tests.integration.exporter.test_merge_order import Case, cases

# Reads jobs from its input until that ends, and writes what the kernel makes of each.
HARNESS = r"""
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" int kquant_encode(int, const float *, uint8_t *, int64_t, uint8_t *);
extern "C" int merge_rows_of_base(int, int, const void *, const float *, const float *, double,
                                  const float *, float *, int64_t, int64_t, int64_t);

template <class T> std::vector<T> numbers(int64_t count) {
    std::vector<T> read(count);
    if (fread(read.data(), sizeof(T), count, stdin) != (size_t)count) throw 1;
    return read;
}

int main() {
    int64_t job[8];
    while (fread(job, sizeof job, 1, stdin) == 1) {
        if (job[0] == 0) {
            const auto rows = numbers<float>(job[2] * 256);
            std::vector<uint8_t> out(job[2] * job[3]), left(job[2]);
            if (kquant_encode(job[1], rows.data(), out.data(), job[2], left.data())) return 1;
            fwrite(left.data(), 1, left.size(), stdout);
            fwrite(out.data(), 1, out.size(), stdout);
        } else {
            const int64_t rows = job[3], columns = job[4], rank = job[5];
            const auto scale = numbers<double>(1);
            const auto base = numbers<uint8_t>(rows * columns * (job[1] ? 2 : 4));
            const auto a = numbers<float>(rank * columns), b = numbers<float>(rows * rank);
            const auto magnitude = numbers<float>(job[6] ? rows : 0);
            std::vector<float> out(rows * columns);
            const float * lengths = job[6] ? magnitude.data() : nullptr;
            if (merge_rows_of_base(job[1], job[2], base.data(), a.data(), b.data(), scale[0],
                                   lengths, out.data(), rows, columns, rank)) return 1;
            fwrite(out.data(), sizeof(float), out.size(), stdout);
        }
    }
}
"""


def main() -> int:
    """Compile, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--emulator", default="qemu-aarch64-static")
    parser.add_argument("--march", default="", help="instruction set, the compiler's own if empty")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = _compile(folder, arguments.compiler, arguments.march)
        kernel = Kernel.prepare(folder / "kernels")
        merges, blocks = cases(), list(_blocks())
        jobs = b"".join([*map(_merge_job, merges), *(_encode_job(*block) for block in blocks)])
        done = subprocess.run(
            [arguments.emulator, program], input=jobs, capture_output=True, check=True
        )
    found, place, differing = done.stdout, 0, 0
    for case in merges:
        wanted = case.merged(kernel).tobytes()
        differing += found[place : place + len(wanted)] != wanted
        place += len(wanted)
    left_alone = 0
    for kind, rows in blocks:
        left = np.frombuffer(found, np.uint8, len(rows), place).astype(bool)
        size = len(rows) * kind.block_bytes
        made = np.frombuffer(found, np.uint8, size, place + len(rows)).reshape(len(rows), -1)
        differing += int((made != kernel.encode(rows, kind))[~left].any(axis=1).sum())
        left_alone += int(left.sum())
        place += len(rows) + size
    passed = differing == 0 and place == len(found)
    print(
        json.dumps(
            {
                "chaos": "other-processors",
                "pass": passed,
                "compiler": arguments.compiler,
                "emulator": arguments.emulator,
                "merges": len(merges),
                "blocks": sum(len(rows) for _, rows in blocks),
                "blocks_left_to_the_reference": left_alone,
                "differing": differing,
            }
        )
    )
    return 0 if passed else 1


def _compile(folder: Path, compiler: str, march: str) -> Path:
    (folder / "harness.cc").write_text(HARNESS)
    sources = [folder / "harness.cc", *(Path(build.__file__).parent / one for one in build.SOURCES)]
    flags = [flag for flag in build.FLAGS if flag not in {"-shared", "-fPIC"}]
    options = [f"-march={march}"] if march else []
    command: list[str | Path] = [
        compiler,
        *flags,
        *options,
        "-static",
        "-o",
        folder / "program",
        *sources,
    ]
    subprocess.run(command, check=True)
    return folder / "program"


def _blocks() -> Iterator[tuple[TensorType, NDArray[np.float32]]]:
    for kind in TYPES:
        for rows in proof_rows(np.random.default_rng(int(kind)), block_count=61):
            yield kind, np.ascontiguousarray(rows)


def _encode_job(kind: TensorType, rows: NDArray[np.float32]) -> bytes:
    return struct.pack("<8q", 0, kind, len(rows), kind.block_bytes, 0, 0, 0, 0) + rows.tobytes()


def _merge_job(case: Case) -> bytes:
    rows, columns = case.base.shape
    magnitude = b"" if case.magnitude is None else case.magnitude.tobytes()
    head = struct.pack(
        "<8qd", 1, case.kind, case.into, rows, columns, len(case.a), bool(magnitude), 0, case.scale
    )
    parts = (case.stored, case.a, case.b)
    return head + b"".join(np.ascontiguousarray(part).tobytes() for part in parts) + magnitude


if __name__ == "__main__":
    sys.exit(main())
