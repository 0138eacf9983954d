"""Base models as GGUF: converted once per revision, kept in a cache, proven bit by bit."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from exporter.domain.layout import Placement, find_placement
from exporter.domain.quantization import TensorType
from exporter.engine.conversion.process import convert
from exporter.engine.disk import disk_errors, reserve_disk, sync_file, sync_folder
from exporter.engine.weights import Checkpoint, GgufFile, as_bits, read_json
from lexicon.faults import Fault, FaultCode

# Changes whenever entries made before must not be used any more.
CACHE_FORMAT: Final = 4
# Numbers that are looked at at once.
ELEMENTS_AT_ONCE: Final = 1 << 18
# The bits of a number's exponent; all of them are set in what is not finite.
_EXPONENTS: Final[Mapping[TensorType, Any]] = {
    TensorType.F32: np.uint32(0x7F80_0000),
    TensorType.F16: np.uint16(0x7C00),
    TensorType.BF16: np.uint16(0x7F80),
}

GGUF_NAME: Final = "base.gguf"
PLACEMENTS_NAME: Final = "placements.json"
# What later steps read of the checkpoint's folder, so that it need not stay.
_KEPT_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# What a merged checkpoint keeps its numbers in, by the safetensors name of the type.
_STORED: Final = {"BF16": TensorType.BF16, "F16": TensorType.F16}
_EXPERT: Final = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A converted base: its folder in the cache."""

    folder: Path

    @property
    def gguf(self) -> Path:
        return self.folder / GGUF_NAME

    def placements(self) -> dict[str, Placement]:
        entries = read_json(self.folder / PLACEMENTS_NAME)
        return {
            name: Placement(**{**entry, "stored": TensorType(entry["stored"])})
            for name, entry in entries.items()
        }

    def settings(self, name: str) -> dict[str, Any]:
        """A kept file of settings of the checkpoint; empty when it has none."""
        return read_json(self.folder / name)


def cache_key(identity: str, *, llama_version: str) -> str:
    """Name of a base's entry: what it is converted from and by what."""
    text = f"{CACHE_FORMAT}\n{llama_version}\n{identity}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_base(cache: Path, key: str) -> BaseModel | None:
    """Returns an earlier conversion."""
    folder = cache / key
    return BaseModel(folder=folder) if (folder / PLACEMENTS_NAME).is_file() else None


def prepare_base(checkpoint_folder: Path, cache: Path, key: str, *, vendor: Path) -> BaseModel:
    """Returns the base as GGUF, converting it unless that was done before.

    Two exporters that share a cache wait for each other; an entry appears whole or not at all.

    Args:
        vendor: folder with llama.cpp's `conversion` package and `gguf-py`.
    Raises:
        Fault: MODEL_WEIGHTS_INVALID, MODEL_NOT_CONVERTIBLE with the converter's output,
            EXPORT_DISK_FULL.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache / f"{key}.lock"), disk_errors():
        if found := cached_base(cache, key):
            return found
        partial = cache / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _convert(checkpoint_folder, partial, vendor)
        partial.rename(cache / key)
        sync_folder(cache)
    return BaseModel(folder=cache / key)


def _convert(source: Path, target: Path, vendor: Path) -> None:
    checkpoint = Checkpoint(source)
    try:
        stored = _dominant_type(checkpoint)
        reserve_disk(target, sum(file.size_bytes for file in checkpoint.files) * 21 // 20)
        groups = convert(source, target / GGUF_NAME, vendor=vendor, outtype=stored.name.lower())
        # Each waits mostly for memory or for the disk.
        with GgufFile(target / GGUF_NAME) as gguf, ThreadPoolExecutor(2) as aside:
            syncing = aside.submit(sync_file, target / GGUF_NAME)
            looking = aside.submit(_require_finite, gguf)
            placements = _placements(checkpoint, gguf, groups, _head_counts(source))
            looking.result()
            syncing.result()
    finally:
        checkpoint.close()
    for name in _KEPT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    encoded = json.dumps({name: asdict(placement) for name, placement in placements.items()})
    with (target / PLACEMENTS_NAME).open("w", encoding="utf-8") as out:
        out.write(encoded)
        out.flush()
        os.fsync(out.fileno())


def _require_finite(gguf: GgufFile) -> None:
    """Looks once at every number of the base, so that copies of its tensors need no second look.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    for info in gguf.header.tensors:
        bits, exponent = gguf.bits(info), _EXPONENTS[info.type]
        bits = bits.view(exponent.dtype)
        rows = max(1, ELEMENTS_AT_ONCE // info.column_count)
        for first in range(0, info.row_count, rows):
            if np.any(bits[first : first + rows] & exponent == exponent):
                raise Fault(
                    FaultCode.MODEL_WEIGHTS_INVALID,
                    f"{info.name} of the base model has numbers that are not finite.",
                    tensor=info.name,
                )


def _dominant_type(checkpoint: Checkpoint) -> TensorType:
    """The type that loses nothing: that of all matrices when they agree, float32 otherwise."""
    kinds = Counter(
        checkpoint.span(name).element_type
        for name in checkpoint.owner
        if len(checkpoint.span(name).shape) >= 2
    )
    match sorted(kinds):
        case ["BF16"]:
            return TensorType.BF16
        case ["F16"]:
            return TensorType.F16
        case _:
            return TensorType.F32


def _head_counts(source: Path) -> tuple[int, ...]:
    config = read_json(source / "config.json")
    text = config.get("text_config")
    settings = text if isinstance(text, Mapping) else config
    names = ("num_attention_heads", "num_key_value_heads")
    return tuple(value for name in names if isinstance(value := settings.get(name), int))


def _placements(
    checkpoint: Checkpoint,
    gguf: GgufFile,
    groups: Sequence[Mapping[str, Sequence[str]]],
    head_counts: Sequence[int],
) -> dict[str, Placement]:
    """Finds where the bits of each checkpoint tensor lie; what moved otherwise is left out."""
    found: dict[str, Placement] = {}
    for group in groups:
        for source, target in _pairs(checkpoint, gguf, group):
            if source in found:
                continue
            placement = _placement(checkpoint, gguf, source, target, head_counts)
            if placement:
                found[source] = placement
    return found


def _pairs(
    checkpoint: Checkpoint, gguf: GgufFile, group: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    for source in group["sources"]:
        for target in group["targets"]:
            if source in checkpoint.owner and target in gguf.by_name:
                yield source, target


def _placement(
    checkpoint: Checkpoint, gguf: GgufFile, source: str, target: str, head_counts: Sequence[int]
) -> Placement | None:
    info = gguf.by_name[target]
    if info.type.is_quantized:
        return None
    span, array = checkpoint.span(source), checkpoint.array(source)
    stored = gguf.bits(info)
    stored = stored.view(np.uint32) if info.type is TensorType.F32 else stored.view(np.uint16)
    expert = None
    if match := _EXPERT.search(source):
        expert, rows = int(match[1]), info.dimensions[1]
        stored = stored[expert * rows : (expert + 1) * rows]
    return find_placement(
        array.reshape(-1, info.column_count) if array.size % info.column_count == 0 else array,
        stored,
        as_bits=lambda rows: as_bits(rows, span.element_type, info.type),
        tensor=target,
        stored=_STORED.get(span.element_type, TensorType.F32),
        expert=expert,
        head_counts=head_counts,
    )


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file; it goes with the process that holds it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
