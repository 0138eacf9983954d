"""The one pass: merged rows are encoded block by block and go straight into the final file.

The header is complete before the first number, as every size follows from the type plan; the file
bears its name only after the last byte is on the disk.
"""

import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain import gguf_format
from exporter.domain.gguf_format import Header, Metadata, TensorInfo
from exporter.domain.quantization import QUANTIZATION_VERSION, Quantization, TensorType
from exporter.domain.type_plan import ModelFacts, TensorShape, file_order, plan_types
from exporter.engine.merge import MergedTensor
from lexicon.faults import Fault, FaultCode

PARTIAL: Final = ".partial"
# Large enough that threads seldom meet, small enough that a few blocks stay in the cache.
BLOCK_ELEMENTS: Final = 1 << 19
# Encoded blocks that wait for their turn, per thread.
WAITING_PER_THREAD: Final = 2
# What must stay free beside the file itself.
RESERVE_BYTES: Final = 64 << 20

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
) -> None:
    """Writes the file as `<target>.partial`, makes it durable and gives it its name.

    Raises:
        Fault: EXPORT_DISK_FULL, MODEL_WEIGHTS_INVALID for numbers that are not finite.
    """
    reserve_disk(target.parent, plan.size_bytes)
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(), partial.open("wb") as out, ThreadPoolExecutor(thread_count) as pool:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, plan.size_bytes)
        out.write(plan.header)
        for info, encoded in _encoded(plan, tensors, encode, pool, thread_count):
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


def reserve_disk(folder: Path, size_bytes: int) -> None:
    """Checks before any work that a file of that size fits.

    Raises:
        Fault: EXPORT_DISK_FULL.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes + RESERVE_BYTES:
        raise Fault(
            FaultCode.EXPORT_DISK_FULL,
            f"The export needs {size_bytes + RESERVE_BYTES} bytes of disk, {free_bytes} are free.",
            needed_bytes=size_bytes + RESERVE_BYTES,
            free_bytes=free_bytes,
        )


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full disk into its code; other disk errors stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise Fault(FaultCode.EXPORT_DISK_FULL) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(
    plan: FilePlan,
    tensors: Mapping[str, MergedTensor],
    encode: Encode,
    pool: ThreadPoolExecutor,
    thread_count: int,
) -> Iterator[tuple[TensorInfo, NDArray[np.uint8]]]:
    """Yields encoded blocks in file order while later ones are made."""
    waiting: deque[tuple[TensorInfo, Future[NDArray[np.uint8]]]] = deque()
    try:
        for info, first, count in _blocks(plan):
            tensor = tensors[info.name]
            waiting.append(
                (info, pool.submit(_encode_block, tensor, info.type, first, count, encode))
            )
            if len(waiting) >= thread_count * WAITING_PER_THREAD:
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


def _encode_block(
    tensor: MergedTensor, wanted: TensorType, first: int, count: int, encode: Encode
) -> NDArray[np.uint8]:
    if not tensor.is_touched and wanted is tensor.info.type:
        return tensor.base.raw(tensor.info, first_row=first, row_count=count)
    rows = tensor.rows(first=first, count=count)
    return encode(rows, wanted)
