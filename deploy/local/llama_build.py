"""llama.cpp's libraries and Python binding, compiled once per machine and cached as a wheel.

Only the libraries are compiled, not llama.cpp's own tools: that takes a third of the time of the
package's own build. GGML_NATIVE is off and contraction of floating-point operations is forbidden,
so that two machines quantise a tensor to the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from deploy.local import places
from deploy.local.python_parts import is_done, mark_done, stamp_of, uv_install
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress, run_tool

VERSION = "0.3.36"
COMPILE_FLAGS = "-ffp-contract=off"
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    f"-DCMAKE_C_FLAGS={COMPILE_FLAGS}",
    f"-DCMAKE_CXX_FLAGS={COMPILE_FLAGS}",
    # A wheel cannot contain symbolic links, so the libraries have plain names and load each other.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CUDA=OFF",
    "-DGGML_METAL=OFF",
    "-DGGML_BLAS=OFF",
)
# The part of the source archive that the exporter runs: the converters and their gguf package.
VENDOR_ENTRIES = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion",
    "gguf-py",
    "LICENSE",
)
BUILD_SECONDS = 3600.0
COMPILER_PROBE_SECONDS = 30.0
# Each compiler process of llama.cpp's larger files takes up to this much memory.
COMPILER_BYTES = 1_500_000_000


def cache_entry() -> Path:
    """Cache folder of the wheel and the vendored scripts of this version, platform and recipe."""
    tag = sysconfig.get_platform()
    key = hashlib.sha256("\n".join((VERSION, tag, *CMAKE_OPTIONS)).encode()).hexdigest()[:12]
    name = f"llama-cpp-python-{VERSION}-{places.platform_key()}-{key}"
    return places.cache_folder() / name


def vendor_folder() -> Path:
    """The folder with llama.cpp's converters."""
    return cache_entry() / "vendor"


def cached_wheel() -> Path | None:
    """The wheel of an earlier build, or None."""
    wheels = sorted(cache_entry().glob("*.whl"))
    return wheels[0] if wheels and (vendor_folder() / VENDOR_ENTRIES[0]).is_file() else None


def build(progress: Progress, logs: Path) -> str:
    """Build the cached wheel unless it exists; return a description.

    Raises:
        SetupRefused: no compiler, no source archive, or the build failed.
    """
    if cached_wheel():
        return "from the cache"
    entry = cache_entry()
    lock = entry.parent / f"{entry.name}.lock"
    with places.exclusive(lock, waiting="  … another setup is building llama.cpp; waiting"):
        if cached_wheel():
            return "from the cache"
        require_compilers()
        with places.scratch_folder("llama.cpp") as scratch:
            made = _build_in(Path(scratch), progress, logs)
            shutil.rmtree(entry, ignore_errors=True)
            made.rename(entry)
    return "built"


def install(progress: Progress, log: Path) -> str:
    """Install the cached wheel into the environment."""
    wheel = cached_wheel()
    assert wheel is not None
    stamp = stamp_of(str(wheel))
    if is_done("llama.cpp", stamp):
        return "already there"
    uv_install(
        ["--no-deps", "--reinstall-package", "llama-cpp-python", str(wheel)],
        label="llama.cpp install",
        log=log,
        progress=progress,
    )
    mark_done("llama.cpp", stamp)
    return VERSION


def main(arguments: list[str]) -> int:
    """`python -m deploy.local.llama_build --into DIR`: build and copy, for an image."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.llama_build")
    parser.add_argument("--into", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    try:
        build(Progress(), places.cache_folder() / "logs")
    except SetupRefused as refused:
        print(f"llama.cpp: {refused}", file=sys.stderr)
        return 1
    shutil.copytree(cache_entry(), chosen.into)
    return 0


def require_compilers() -> None:
    """Check that a C and a C++ compiler make a program here.

    Raises:
        SetupRefused: one is missing or does not work.
    """
    for language, variable, names in (
        ("C", "CC", ("cc", "gcc", "clang")),
        ("C++", "CXX", ("c++", "g++", "clang++")),
    ):
        chosen = os.environ.get(variable)
        found = [name for name in ([chosen] if chosen else names) if _compiles(name, language)]
        if not found:
            raise SetupRefused(
                f"No working {language} compiler was found.",
                next_step="Debian, Ubuntu: apt install build-essential; Fedora: dnf install "
                "gcc-c++; macOS: xcode-select --install.",
            )


def _compiles(compiler: str, language: str) -> bool:
    kind = "c" if language == "C" else "c++"
    source = "#include <stdio.h>\n" if kind == "c" else "#include <string>\n"
    with tempfile.TemporaryDirectory() as scratch:
        command = [*compiler.split(), "-x", kind, "-", "-o", str(Path(scratch) / "probe")]
        try:
            probe = subprocess.run(
                command,
                input=source + "int main() { return 0; }\n",
                text=True,
                check=False,
                capture_output=True,
                timeout=COMPILER_PROBE_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return probe.returncode == 0


def _build_in(scratch: Path, progress: Progress, logs: Path) -> Path:
    """Build in a scratch folder; return a folder ready to become the cache entry."""
    source = _source(scratch, progress, logs)
    llama = source / "vendor" / "llama.cpp"
    compiled = scratch / "build"
    tools = places.environment_folder() / "bin"
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CMAKE_GENERATOR": "Ninja"}
    origin = "@loader_path" if os.uname().sysname == "Darwin" else "$ORIGIN"
    run_tool(
        [
            tools / "cmake",
            "-S",
            llama,
            "-B",
            compiled,
            *CMAKE_OPTIONS,
            f"-DCMAKE_INSTALL_RPATH={origin}",
        ],
        label="llama.cpp configure",
        log=logs / "llama-configure.log",
        progress=progress,
        timeout_seconds=BUILD_SECONDS,
        environment=environment,
    )
    run_tool(
        [tools / "cmake", "--build", compiled, "--target", "llama", "--parallel", str(_jobs())],
        label="llama.cpp build",
        log=logs / "llama-build.log",
        progress=progress,
        timeout_seconds=BUILD_SECONDS,
        environment=environment,
    )
    libraries = source / "llama_cpp" / "lib"
    libraries.mkdir(exist_ok=True)
    for library in [*compiled.rglob("lib*.so"), *compiled.rglob("lib*.dylib")]:
        shutil.copy2(library, libraries / library.name)
    # The archive's ignore list names lib/, and the build backend would leave the libraries out.
    (source / ".gitignore").unlink(missing_ok=True)
    entry = scratch / "entry"
    run_tool(
        [
            places.environment_python(),
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
            "-w",
            entry,
            source,
        ],
        label="llama.cpp wheel",
        log=logs / "llama-wheel.log",
        progress=progress,
        timeout_seconds=BUILD_SECONDS,
        environment={**environment, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    )
    _keep_vendor(llama, entry / "vendor")
    return entry


def _source(scratch: Path, progress: Progress, logs: Path) -> Path:
    """Download the pinned source archive, check its hash and unpack it."""
    wanted = places.repository() / "requirements" / "llama.txt"
    tools = places.environment_folder() / "bin"
    run_tool(
        [
            places.environment_python(),
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--require-hashes",
            "--disable-pip-version-check",
            "--no-binary",
            "llama-cpp-python",
            "--no-build-isolation",
            "-d",
            scratch,
            "-r",
            wanted,
        ],
        label="llama.cpp source",
        log=logs / "llama-source.log",
        progress=progress,
        timeout_seconds=BUILD_SECONDS,
        environment={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
    )
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        # The archive's hash was checked; older 3.11 releases do not know the filter yet.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        packed.extractall(scratch, **safely)  # type: ignore[arg-type]  # noqa: S202 (hash checked)
    archive.unlink()
    (source,) = scratch.glob(f"llama_cpp_python-{VERSION}")
    return source


def _keep_vendor(llama: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in VENDOR_ENTRIES:
        if (llama / name).is_dir():
            shutil.copytree(llama / name, target / name)
        else:
            shutil.copy2(llama / name, target / name)


def _jobs() -> int:
    """Compiler processes at once: the cores, or fewer where memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return cores or 1
    return max(1, min(cores or 1, memory_bytes // COMPILER_BYTES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
