"""Compiles the kernel for this processor and keeps it.

`python -m exporter.engine.kernel.build FOLDER` does so ahead of need, for images.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SOURCES: Final = ("kquant.cc", "merge.cc")
HEADERS: Final = ("half.h", "lanes.h")
# Contraction would round once where the reference rounds twice. The last two only allow loops over
# lanes to become vector code; they change no result.
FLAGS: Final = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-w", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
COMPILERS: Final = ("c++", "g++", "clang++")
COMPILE_SECONDS: Final = 300.0
OUTPUT_CHARACTERS: Final = 2000
CPU_INFO: Final = Path("/proc/cpuinfo")
# Instruction sets of x86-64 by level, as the psABI defines them; the flags that distinguish them.
_LEVELS: Final = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
)


class CannotBuildError(Exception):
    """There is no kernel here; the text says why."""


def kernel_library(folder: Path, *, architectures: Sequence[tuple[str, ...]] | None = None) -> Path:
    """Returns the compiled kernel of this machine, compiling it unless the folder holds it.

    Args:
        architectures: compiler options to try in this order; by default those of this processor.
    Raises:
        CannotBuildError: no compiler works, or the folder cannot be written.
    """
    problems = []
    for compiler in _compilers():
        for architecture in architectures_here() if architectures is None else architectures:
            target = folder / f"kernel-{_key(compiler, architecture)}.so"
            if target.is_file():
                return target
            try:
                _compile(compiler, architecture, target)
            except (OSError, subprocess.SubprocessError, CannotBuildError) as error:
                problems.append(f"{compiler} {' '.join(architecture)}: {error}")
                continue
            return target
    raise CannotBuildError("; ".join(problems) or "no C++ compiler was found")


def _compile(compiler: str, architecture: tuple[str, ...], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        sources = [str(here / name) for name in SOURCES]
        command = [compiler, *FLAGS, *architecture, "-o", str(made), *sources]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            output = (done.stderr or done.stdout)[-OUTPUT_CHARACTERS:]
            raise CannotBuildError(f"exit {done.returncode}: {output.strip()}")
        made.replace(target)


def _compilers() -> list[str]:
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else COMPILERS
    return list(dict.fromkeys(found for name in names if (found := shutil.which(name))))


def architectures_here() -> list[tuple[str, ...]]:
    """Compiler options to try, the best for this processor first."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return [()]
    present = _processor_flags()
    fitting = [(f"-march={level}",) for level, needed in _LEVELS if needed <= present]
    return [*fitting, ()]


def _processor_flags() -> set[str]:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def _key(compiler: str, architecture: tuple[str, ...]) -> str:
    """Changes with the source, the options and the compiler."""
    here = Path(__file__).parent
    stat = Path(compiler).resolve().stat()
    parts = [
        *(here.joinpath(name).read_bytes() for name in (*SOURCES, *HEADERS)),
        " ".join((*FLAGS, *architecture)).encode(),
        f"{Path(compiler).resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def main() -> int:
    """Compile ahead of need, for images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    try:
        library = kernel_library(parser.parse_args().folder)
    except CannotBuildError as error:
        sys.stderr.write(f"No kernel: {error}\n")
        return 1
    sys.stdout.write(f"{library}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
