"""An export of the same inputs is the same file on every machine.

Other machines are emulated as far as one processor can: what OpenBLAS, numpy, torch and the C
library choose by the processor is chosen for a lesser one, and the kernel is compiled for it.
`make golden-exports` writes the digests anew; read the difference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.exporter.golden_exports import LEVELS
from tests.integration.exporter.test_merge_order import levels_here

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "exporter" / "exports.json"
# What numpy chooses between, beyond x86-64-v2.
NUMPY_AVX512 = "X86_V4 AVX512_ICL AVX512_SPR"
MACHINES = {
    "this one": ("native", {}),
    "AVX2 alone, one thread": (
        "x86-64-v3",
        {
            "OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1",
            "NPY_DISABLE_CPU_FEATURES": NUMPY_AVX512,
        },
    ),
    "no AVX": (
        "baseline",
        {
            "OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "2",
            "NPY_DISABLE_CPU_FEATURES": f"X86_V3 {NUMPY_AVX512}",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2_Usable,-FMA_Usable,-AVX2,-FMA",
        },
    ),
    "no compiler, Zen": ("none", {"OPENBLAS_CORETYPE": "Zen"}),
    "AVX-512": ("x86-64-v4", {"OPENBLAS_CORETYPE": "SkylakeX"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(model_cache: Path) -> Path:
    return model_cache / "golden"


# Those that convert the bases themselves; the others begin with what this machine converted.
CONVERTING = ("this one", "no AVX")


@pytest.mark.parametrize("machine", list(MACHINES))
def test_every_machine_exports_the_golden_files(machine: str, kept: Path, tmp_path: Path) -> None:
    level, settings = MACHINES[machine]
    cache = tmp_path / "cache" if machine in CONVERTING else kept
    if level in LEVELS and level not in levels_here():
        pytest.skip(f"this processor does not run {level}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.integration.exporter.golden_exports",
         "--kernel", level, "--cache", str(cache)],
        env={**os.environ, **settings, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text(encoding="utf-8"))
