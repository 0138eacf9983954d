"""The one pass: merged rows are encoded block by block and go straight into the final file.

The header is complete before the first number, as every size follows from the type plan; the file
bears its name only after the last byte is on the disk.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain import gguf_format
from exporter.domain.gguf_format import Header, Metadata, TensorInfo
from exporter.domain.quantization import QUANTIZATION_VERSION, Quantization, TensorType
from exporter.domain.type_plan import ModelFacts, TensorShape, file_order, plan_types
from exporter.engine.disk import PARTIAL, disk_errors, reserve_disk, sync_folder
from exporter.engine.merge import MergedTensor
from exporter.engine.reuse import EncodedStore
from exporter.engine.weights import GgufFile

# Large enough that threads seldom meet, small enough that a few blocks stay in the cache.
BLOCK_ELEMENTS: Final = 1 << 19
# Encoded blocks that wait for their turn, per thread.
WAITING_PER_THREAD: Final = 2

Encode = Callable[[NDArray[np.float32], TensorType], NDArray[np.uint8]]
OnElements = Callable[[int], None]


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
) -> None:
    """Writes the file as `<target>.partial`, makes it durable and gives it its name.

    Args:
        on_elements: called with the number of elements as they are written.
        store: encoded tensors of the base, used for those that the adapter does not touch.
    Raises:
        Fault: EXPORT_DISK_FULL, MODEL_WEIGHTS_INVALID for numbers that are not finite.
    """
    reserve_disk(target.parent, plan.size_bytes)
    ready = _encoded_before(plan, tensors, store)
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(), partial.open("wb") as out, ThreadPoolExecutor(thread_count) as pool:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, plan.size_bytes)
        out.write(plan.header)
        for info, encoded in _encoded(
            plan, tensors, ready, encode, pool, thread_count=thread_count
        ):
            out.write(encoded.data)
            on_elements(encoded.shape[0] * info.column_count)
            if out.tell() == len(plan.header) + info.offset + info.size_bytes:
                out.write(
                    bytes(gguf_format.padded(info.size_bytes, plan.alignment) - info.size_bytes)
                )
        assert out.tell() == plan.size_bytes
        out.flush()
        os.fsync(out.fileno())
        partial.replace(target)
        sync_folder(target.parent)


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


def _encoded(
    plan: FilePlan,
    tensors: Mapping[str, MergedTensor],
    ready: Mapping[str, NDArray[np.uint8]],
    encode: Encode,
    pool: ThreadPoolExecutor,
    *,
    thread_count: int,
) -> Iterator[tuple[TensorInfo, NDArray[np.uint8]]]:
    """Yields encoded blocks in file order while later ones are made."""
    waiting: deque[tuple[TensorInfo, Future[NDArray[np.uint8]]]] = deque()
    limit = thread_count * WAITING_PER_THREAD

    def block(info: TensorInfo, first: int, count: int) -> NDArray[np.uint8]:
        if info.name in ready:
            return ready[info.name][first : first + count]
        return encode(tensors[info.name].rows(first=first, count=count), info.type)

    try:
        for info, first, count in _blocks(plan):
            waiting.append((info, pool.submit(block, info, first, count)))
            if len(waiting) >= limit:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _blocks(plan: FilePlan) -> Iterator[tuple[TensorInfo, int, int]]:
    for info in plan.tensors:
        rows = max(1, BLOCK_ELEMENTS // info.column_count)
        for first in range(0, info.row_count, rows):
            yield info, first, min(rows, info.row_count - first)
