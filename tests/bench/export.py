"""`python -m tests.bench.export [--shape NAME] [--rounds N] [--memory-only]`: the export measured.

One pass against the classical chain: merge_and_unload, convert_hf_to_gguf, llama_model_quantize,
with as many threads, in a running process with its libraries loaded. Ours is measured with and
without the proof of its behaviour, which the chain has not; as the first export of its base, whose
conversion counts, and as a later one, which is how it serves; and both sides once more as new
processes. Each is run once uncounted, and the order turns from round to round.
The reference that the proof runs over is llama.cpp's own reading of the chain's unquantised file.
`--memory-only` looks at memory and disk alone, of a first export that converts its base and of a
second with its proof; shapes are up to 3 B parameters and 262,144 tokens.
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from deploy.local import llama_build
from exporter.child import Child
from exporter.domain.gguf_format import TensorInfo
from exporter.domain.quantization import TensorType
from exporter.engine.base import BaseModel, cache_key
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.weights import GgufFile
from exporter.pipe import Export, Exported
from exporter.worker import core_count
from tests.bench import frame, shapes
from tests.bench.classic_export import quantise
from tests.bench.reference import of_file, of_merge, write_reference
from tests.bench.shapes import Shape
from tests.bench.watching import Peak, folder_bytes, watching, written_bytes

FIRST_GOAL, LATER_GOAL = 3.0, 6.0
MEMORY_GOAL_MIB = 512
SHAPES = {
    shape.name: shape
    for shape in (
        shapes.LLAMA, shapes.QWEN, shapes.LLAMA_3B, shapes.GEMMA, shapes.QWEN_152K
    )
}  # fmt: skip
PEER, PEER_COLD = "classical chain, running", "classical chain, new process"
FIRST, LATER = "first of its base, proof", "later, proof"
FIRST_BARE, LATER_BARE = "first of its base, no proof", "later, no proof"
COLD = "later, proof, new process"
# What is timed, each with the peer that it is compared with.
PEERS = {FIRST: PEER, LATER: PEER, FIRST_BARE: PEER, LATER_BARE: PEER, COLD: PEER_COLD}
# Progress messages of an export that is not slow.
SPOKEN_BYTES = 65_536


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was found of one shape."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peer_steps: dict[str, float] = field(default_factory=dict)
    own_steps: dict[str, float] = field(default_factory=dict)
    peak: Peak = field(default_factory=Peak)
    spare_bytes: int = 0
    written_beyond_bundle: int = 0
    proven_tokens: int = 0
    tensors: int = 0
    differing: int = 0
    numbers_unlike_peer: float = 0.0

    def ratio(self, kind: str) -> float:
        """How many times less than the peer; the median over the rounds."""
        return frame.median_ratio(self.seconds, ours=kind, peer=PEERS[kind])


def main() -> None:
    """Measure the shapes one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-only", action="store_true")
    arguments = parser.parse_args()
    wanted = arguments.shape or [shapes.LLAMA.name, shapes.QWEN.name]
    if arguments.memory_only:
        _report_memory({name: asyncio.run(_memory(SHAPES[name])) for name in wanted})
    found: dict[str, Measured] = {}
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = _measure(SHAPES[name], Path(folder), arguments.rounds)
    _report(found)


def _measure(shape: Shape, folder: Path, rounds: int) -> Measured:
    measured = Measured()
    setting = _prepare(shape, folder)
    loop = asyncio.new_event_loop()
    work = loop.run_until_complete
    child = work(setting.start())
    with Classical.start() as peer:
        # Uncounted: it compiles the kernel, and leaves what the references are made of.
        peer.chain(setting, folder / "classic")
        work(setting.export(child, "bare"))
        base = BaseModel(folder=setting.cache / setting.base_key)
        for adapter in ("first", "later"):
            write_reference(
                setting.adapter(adapter),
                base=of_file(base.gguf),
                merged=of_file(folder / "classic" / "merged.gguf"),
            )

        def cold() -> None:
            fresh = work(setting.start())
            work(setting.export(fresh, "later"))
            work(fresh.kill())

        def later() -> None:
            exported = work(setting.export(child, "later"))
            measured.proven_tokens = exported.proof.token_count
            measured.own_steps = dict(exported.seconds)

        def classical() -> None:
            measured.peer_steps = peer.chain(setting, folder / "classic")

        def classical_cold() -> None:
            with Classical.start() as fresh:
                fresh.chain(setting, folder / "classic-cold")

        contenders: dict[str, Callable[[], object]] = {
            PEER: classical,
            LATER: later,
            FIRST: lambda: work(setting.export(child, "first", anew=True)),
            LATER_BARE: lambda: work(setting.export(child, "bare")),
            FIRST_BARE: lambda: work(setting.export(child, "bare", anew=True)),
            PEER_COLD: classical_cold,
            COLD: cold,
        }
        measured.seconds = frame.paired(contenders, rounds=rounds)
        # Untimed: looking at memory takes a core a part of its time.
        work(_watched(setting, child, "later", measured))
    _compare(setting, child, work, folder, measured)
    work(child.kill())
    loop.close()
    return measured


async def _watched(setting: "Setting", child: Child, adapter: str, measured: Measured) -> Exported:
    """One export in a running exporter: its memory and disk."""
    setting.target.unlink(missing_ok=True)
    written = written_bytes(child.process_id)
    with watching(child.process_id, setting.work, measured.peak):
        exported = await setting.export(child, adapter)
    size_bytes = setting.target.stat().st_size
    measured.spare_bytes = max(measured.spare_bytes, measured.peak.folder_bytes - size_bytes)
    beyond = written_bytes(child.process_id) - written - size_bytes
    measured.written_beyond_bundle = max(measured.written_beyond_bundle, beyond)
    return exported


class Classical:
    """The classical chain in a process of its own, with its libraries loaded."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @classmethod
    @contextmanager
    def start(cls) -> "Iterator[Classical]":
        command = [
            sys.executable, "-W", "ignore", "-m", "tests.bench.classic_export",
            str(llama_build.vendor_folder()), str(core_count()),
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "\n"
            yield cls(process)
            process.stdin.close()

    def chain(self, setting: "Setting", folder: Path) -> dict[str, float]:
        """Merges, converts, quantises; the seconds of each step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        places = (setting.checkpoint, setting.adapter("bare"), folder)
        self._process.stdin.write("\t".join(map(str, places)) + "\n")
        self._process.stdin.flush()
        seconds: dict[str, float] = json.loads(self._process.stdout.readline())
        return seconds


async def _memory(shape: Shape) -> Mapping[str, Any]:
    """Memory and disk of a first export with its conversion, and of a second with its proof."""
    with tempfile.TemporaryDirectory() as name:
        setting = _prepare(shape, Path(name))
        child = await setting.start()
        first, second = Measured(), Measured()
        await _watched(setting, child, "bare", first)
        frame.progress(f"{shape.name} first export: {first.peak.anonymous_mib:.0f} MiB anonymous")
        base = BaseModel(folder=setting.cache / setting.base_key)
        kernel = Kernel.prepare(setting.cache / "kernels")
        write_reference(
            setting.adapter("later"),
            base=of_file(base.gguf),
            merged=of_merge(base, setting.adapter("later"), kernel),
        )
        begin = time.monotonic()
        exported = await _watched(setting, child, "later", second)
        frame.progress(f"{shape.name} second export: {second.peak.anonymous_mib:.0f} MiB anonymous")
        await child.kill()
        return {
            "parameters": shape.parameter_count,
            "bundle_bytes": setting.target.stat().st_size,
            "peak_anonymous_mib_with_conversion": round(first.peak.anonymous_mib),
            "peak_anonymous_mib": round(second.peak.anonymous_mib),
            "proven_over_tokens": exported.proof.token_count,
            "temporary_bytes": second.spare_bytes,
            "bytes_written_beyond_bundle": second.written_beyond_bundle,
            "cache_bytes": folder_bytes(setting.cache),
            "seconds": round(time.monotonic() - begin, 1),
            "seconds_by_step": dict(exported.seconds),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a shape's files lie."""

    shape: Shape
    checkpoint: Path
    cache: Path
    work: Path

    @property
    def target(self) -> Path:
        return self.work / "bundle.zip"

    @property
    def base_key(self) -> str:
        """The base's folder in the cache."""
        return cache_key("base", llama_version=version("llama-cpp-python"))

    def adapter(self, name: str) -> Path:
        return self.checkpoint.with_name(f"adapter-{name}")

    async def start(self) -> Child:
        child = await Child.start(
            log_path=self.work.parent / "child.log",
            cache=self.cache,
            vendor=llama_build.vendor_folder(),
            thread_count=core_count(),
        )
        await child.ready()
        return child

    async def export(
        self, child: Child, adapter: str, *, quantization: str = "Q4_K_M", anew: bool = False
    ) -> Exported:
        """One export; `anew` converts the base as for the first one."""
        job = Export(
            checkpoint=str(self.checkpoint),
            base_key="base",
            base_model=self.shape.name,
            adapter=str(self.adapter(adapter)),
            quantization=quantization,
            target=str(self.target),
            run="projects/bench/runs/bench",
            is_converted_anew=anew,
        )
        return await child.export(job, lambda _progress: None)


def _prepare(shape: Shape, folder: Path) -> Setting:
    frame.progress(f"{shape.name}: {shape.parameter_count / 1e6:.0f} M parameters")
    setting = Setting(
        shape=shape, checkpoint=folder / "base", cache=folder / "cache", work=folder / "work"
    )
    setting.work.mkdir()
    shapes.write_checkpoint(shape, setting.checkpoint)
    for name in ("bare", "first", "later"):
        shapes.write_adapter(shape, setting.adapter(name), seed=1)
    return setting


def _compare(
    setting: Setting, child: Child, work: Callable[..., Any], folder: Path, measured: Measured
) -> None:
    """The file against llama.cpp's quantisation of our own merge, and that merge against PEFT's."""
    ours, merged, theirs = (folder / name for name in ("ours.gguf", "merged.gguf", "theirs.gguf"))
    for target, quantization in ((ours, "Q4_K_M"), (merged, "BF16")):
        work(setting.export(child, "bare", quantization=quantization))
        with zipfile.ZipFile(setting.target) as archive:
            Path(archive.extract("model.gguf", folder)).rename(target)
    quantise(merged, theirs, threads=core_count())
    with GgufFile(ours) as mine, GgufFile(theirs) as reference:
        measured.tensors = len(reference.header.tensors)
        for info in reference.header.tensors:
            found = mine.by_name.get(info.name)
            measured.differing += (
                found is None
                or found.type is not info.type
                or _digest(mine, found) != _digest(reference, info)
            )
    off = total = 0
    with GgufFile(merged) as mine, GgufFile(folder / "classic" / "merged.gguf") as reference:
        for info in reference.header.tensors:
            if info.type is TensorType.BF16:
                off += int((mine.bits(mine.by_name[info.name]) != reference.bits(info)).sum())
                total += info.row_count * info.column_count
    measured.numbers_unlike_peer = off / total


def _digest(file: GgufFile, info: TensorInfo) -> bytes:
    return hashlib.sha256(file.raw(info, first_row=0, row_count=info.row_count).data).digest()


def _report(found: Mapping[str, Measured]) -> NoReturn:
    ratios = {kind: min(m.ratio(kind) for m in found.values()) for kind in PEERS}
    memory = max(m.peak.anonymous_mib for m in found.values())
    spare = max(m.spare_bytes for m in found.values())
    beyond = max(m.written_beyond_bundle for m in found.values())
    differing = sum(m.differing for m in found.values())
    frame.finish(
        frame.Result(
            bench="export",
            value=max(statistics.median(m.seconds[LATER]) for m in found.values()),
            unit="seconds of a later export in a running exporter with its proof, slower shape",
            peer={
                "name": "merge_and_unload, convert_hf_to_gguf, llama_model_quantize, in a running "
                "process; no proof",
                "value": round(max(statistics.median(m.seconds[PEER]) for m in found.values()), 2),
            },
            ratio=ratios[LATER],
            goal=f"with proof: first of a base >= {FIRST_GOAL:.0f}x, later >= {LATER_GOAL:.0f}x; "
            "every tensor as llama.cpp quantises it, anonymous memory <= 512 MiB, no temporary "
            "disk beyond the cached base",
            passed=ratios[FIRST] >= FIRST_GOAL
            and ratios[LATER] >= LATER_GOAL
            and differing == 0
            and memory <= MEMORY_GOAL_MIB
            and spare <= 0
            and beyond <= SPOKEN_BYTES,
            proof={
                "ratios": {kind: round(ratio, 2) for kind, ratio in ratios.items()},
                "seconds": {name: _medians(m) for name, m in found.items()},
                "steps": {
                    name: {"ours": m.own_steps, "peer": m.peer_steps} for name, m in found.items()
                },
                "rounds": min(len(m.seconds[PEER]) for m in found.values()),
                "threads_of_each": core_count(),
                "proven_over_tokens": min(m.proven_tokens for m in found.values()),
                "tensors": {name: m.tensors for name, m in found.items()},
                "tensors_differing": differing,
                "numbers_merged_unlike_peft": max(m.numbers_unlike_peer for m in found.values()),
                "peak_anonymous_mib": round(memory),
                "temporary_bytes": spare,
                "bytes_written_beyond_bundle": beyond,
            },
        )
    )


def _medians(measured: Measured) -> dict[str, float]:
    return {
        kind: round(statistics.median(seconds), 2) for kind, seconds in measured.seconds.items()
    }


def _report_memory(found: Mapping[str, Mapping[str, Any]]) -> NoReturn:
    kinds = ("peak_anonymous_mib_with_conversion", "peak_anonymous_mib")
    memory = max(f[kind] for f in found.values() for kind in kinds)
    passed = memory <= MEMORY_GOAL_MIB and all(
        f["temporary_bytes"] <= 0
        and f["bytes_written_beyond_bundle"] <= SPOKEN_BYTES
        and f["proven_over_tokens"] > 0
        for f in found.values()
    )
    frame.finish(
        frame.Result(
            bench="export-memory",
            value=memory,
            unit="MiB of anonymous memory at most, conversion of the base and proof included",
            goal="<= 512 MiB whatever the model's size, no temporary disk beyond the cached base",
            passed=passed,
            proof=found,
        )
    )


if __name__ == "__main__":
    main()
