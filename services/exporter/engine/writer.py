"""The one pass: merged rows are encoded block by block and go straight into the final file.

Whoever needs merged rows for another reason, as the proof does, makes them and hands them on. The
header is complete before the first number, as every size follows from the type plan; the file
bears its name only after the last byte is written.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain import gguf_format
from exporter.domain.gguf_format import Header, Metadata, TensorInfo
from exporter.domain.quantization import QUANTIZATION_VERSION, Quantization, TensorType
from exporter.domain.type_plan import ModelFacts, TensorShape, file_order, plan_types
from exporter.engine.disk import PARTIAL, disk_errors, reserve_disk, write_at
from exporter.engine.merge import MergedTensor
from exporter.engine.reuse import EncodedStore
from exporter.engine.weights import GgufFile

# Large enough that threads seldom meet, small enough that a few blocks stay in the cache.
BLOCK_ELEMENTS: Final = 1 << 19

Encode = Callable[[NDArray[np.float32], TensorType], NDArray[np.uint8]]
OnElements = Callable[[int], None]
# Name of a tensor, its first row here, merged rows.
OnRows = Callable[[str, int, NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """A GGUF that is about to be written: its header and which tensor comes from where."""

    header: bytes
    tensors: tuple[TensorInfo, ...]
    size_bytes: int
    alignment: int

    @property
    def element_count(self) -> int:
        return sum(info.column_count * info.row_count for info in self.tensors)


def plan_file(base: Header, mix: Quantization, overrides: Sequence[Metadata] = ()) -> FilePlan:
    """Returns the plan of a quantised file: the base's header, new types, order and overrides."""
    ordered = sorted(base.tensors, key=lambda info: file_order(info.name))
    shapes = [
        TensorShape(name=info.name, dimensions=info.dimensions, stored_type=info.type)
        for info in ordered
    ]
    types = plan_types(shapes, model_facts(base), mix)
    placed = gguf_format.lay_out(
        [(shape.name, shape.dimensions, kind) for shape, kind in zip(shapes, types, strict=True)],
        alignment=base.alignment,
    )
    metadata = dict(base.metadata)
    for entry in (
        gguf_format.uint32_value("general.quantization_version", QUANTIZATION_VERSION),
        gguf_format.uint32_value("general.file_type", mix.file_type),
        *overrides,
    ):
        metadata[entry.key] = entry
    header = gguf_format.encode_header(list(metadata.values()), placed, alignment=base.alignment)
    data_bytes = sum(gguf_format.padded(info.size_bytes, base.alignment) for info in placed)
    return FilePlan(
        header=header,
        tensors=tuple(placed),
        size_bytes=len(header) + data_bytes,
        alignment=base.alignment,
    )


def model_facts(header: Header) -> ModelFacts:
    """What the type plan needs of a model's metadata."""
    architecture = header.text("general.architecture") or ""
    heads = header.number(f"{architecture}.attention.head_count")
    return ModelFacts(
        architecture=architecture,
        layer_count=header.number(f"{architecture}.block_count"),
        head_count=heads,
        head_count_kv=header.number(f"{architecture}.attention.head_count_kv", heads),
        expert_count=header.number(f"{architecture}.expert_count"),
    )


def write_file(
    plan: FilePlan,
    tensors: Mapping[str, MergedTensor],
    target: Path,
    *,
    encode: Encode,
    thread_count: int,
    on_elements: OnElements,
    store: EncodedStore | None = None,
    ahead: Callable[[OnRows], None] | None = None,
) -> None:
    """Writes the file as `<target>.partial` and gives it its name, once all of it is written.

    A power cut may still take it; durable is what is made of it.

    Args:
        on_elements: called with the number of elements as they are written, by one thread at a
            time.
        store: encoded tensors of the base, used for those that the adapter does not touch.
        ahead: reads merged tensors, whole and each once, and hands on their rows, which are then
            not merged again. It may do so from several threads.
    Raises:
        Fault: EXPORT_DISK_FULL, MODEL_WEIGHTS_INVALID for numbers that are not finite.
    """
    reserve_disk(target.parent, plan.size_bytes)
    ready = _encoded_before(plan, tensors, store)
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(), partial.open("wb") as out, ThreadPoolExecutor(thread_count) as pool:
        file = out.fileno()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, plan.size_bytes)
        # Padding is what nobody writes: zeros.
        os.ftruncate(file, plan.size_bytes)
        write_at(file, plan.header, 0)
        places = {info.name: info for info in plan.tensors}
        written, lock = Counter[str](), threading.Lock()

        def put(info: TensorInfo, first: int, encoded: NDArray[np.uint8]) -> None:
            row_bytes = info.size_bytes // info.row_count
            write_at(file, encoded.data, len(plan.header) + info.offset + first * row_bytes)
            with lock:
                written[info.name] += len(encoded)
                on_elements(len(encoded) * info.column_count)

        def take(name: str, first: int, rows: NDArray[np.float32]) -> None:
            put(places[name], first, encode(rows, places[name].type))

        def make(block: tuple[TensorInfo, int, int]) -> None:
            info, first, count = block
            if info.name in ready:
                put(info, first, ready[info.name][first : first + count])
            else:
                rows = tensors[info.name].rows(first=first, count=count)
                put(info, first, encode(rows, info.type))

        if ahead is not None:
            ahead(take)
        rest = [info for info in plan.tensors if info.name not in written]
        for _ in pool.map(make, _blocks(rest)):
            pass
        assert all(written[info.name] == info.row_count for info in plan.tensors)
        partial.replace(target)


def keep_encoded(
    plan: FilePlan, tensors: Mapping[str, MergedTensor], path: Path, store: EncodedStore
) -> None:
    """Keeps what the adapter did not touch of a proven file, for the next export."""
    with GgufFile(path) as file:
        for info in plan.tensors:
            tensor = tensors[info.name]
            if not tensor.is_touched and info.type is not tensor.info.type:
                store.keep(info, file.raw(info, first_row=0, row_count=info.row_count))


def _encoded_before(
    plan: FilePlan, tensors: Mapping[str, MergedTensor], store: EncodedStore | None
) -> dict[str, NDArray[np.uint8]]:
    """Rows that need no encoding: untouched ones of the base's own type, or kept from before."""
    ready: dict[str, NDArray[np.uint8]] = {}
    for info in plan.tensors:
        tensor = tensors[info.name]
        if tensor.is_touched:
            continue
        if info.type is tensor.info.type:
            ready[info.name] = tensor.base.raw(tensor.info, first_row=0, row_count=info.row_count)
        elif store is not None and (found := store.find(info)) is not None:
            ready[info.name] = found
    return ready


def _blocks(tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, int, int]]:
    for info in tensors:
        rows = max(1, BLOCK_ELEMENTS // info.column_count)
        for first in range(0, info.row_count, rows):
            yield info, first, min(rows, info.row_count - first)
