"""Weight files through memory maps: safetensors checkpoints and GGUF files.

Nothing is read whole; arrays are views of the map, so that memory in use stays small and clean
pages can be dropped by the system at any time.
"""

import json
import mmap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from exporter.domain import gguf_format, safetensors_format
from exporter.domain.gguf_format import Header, TensorInfo
from exporter.domain.quantization import TensorType
from exporter.domain.safetensors_format import TensorSpan
from lexicon.faults import Fault, FaultCode

# bfloat16 has no numpy type; its bits are carried as uint16.
_BITS: Final[Mapping[str, type[np.generic]]] = MappingProxyType(
    {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64, "I64": np.int64,
     "I32": np.int32, "U8": np.uint8, "I8": np.int8}
)  # fmt: skip
MAX_CONFIG_BYTES: Final = 64 << 20


class MappedFile:
    """A file mapped for reading; closes with its context."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size_bytes = path.stat().st_size
            if self.size_bytes == 0:
                raise Fault(
                    FaultCode.MODEL_WEIGHTS_INVALID, f"{path.name} is empty.", file=path.name
                )
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        # While views are still alive somewhere, the map goes with the last of them.
        with suppress(BufferError):
            self._map.close()

    def view(self, dtype: type[np.generic], *, start: int, count: int) -> NDArray[Any]:
        """`count` numbers from byte `start`, without a copy."""
        return np.frombuffer(self._map, dtype=dtype, count=count, offset=start)

    def bytes_at(self, start: int, end: int) -> bytes:
        return self._map[start:end]

    def forget(self, start: int, end: int) -> None:
        """Advises the system that these pages are not needed again soon."""
        if hasattr(mmap, "MADV_DONTNEED"):
            page = mmap.PAGESIZE
            first = start // page * page
            self._map.madvise(mmap.MADV_DONTNEED, first, min(end, self.size_bytes) - first)


class SafetensorsFile(MappedFile):
    """One safetensors file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        prefix = self.bytes_at(0, safetensors_format.LENGTH_BYTES)
        length = safetensors_format.header_bytes(prefix, file_bytes=self.size_bytes)
        encoded = self.bytes_at(len(prefix), len(prefix) + length)
        header = safetensors_format.parse_header(encoded, file_bytes=self.size_bytes)
        self.tensors = header.tensors
        self.metadata = header.metadata

    def array(self, name: str) -> NDArray[Any]:
        """A tensor in its own type (bfloat16 as uint16)."""
        span = self.tensors[name]
        dtype = _BITS.get(span.element_type)
        if dtype is None:
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                f"Tensor {name} has the type {span.element_type}, which is not supported.",
                tensor=name,
            )
        count = (span.end - span.start) // np.dtype(dtype).itemsize
        return self.view(dtype, start=span.start, count=count).reshape(span.shape)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32."""
        return to_float32(self.array(name), self.tensors[name].element_type)


class Checkpoint:
    """A model's safetensors files, one or sharded."""

    def __init__(self, folder: Path) -> None:
        self.files = [SafetensorsFile(path) for path in _shards(folder)]
        self.owner: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.tensors:
                if name in self.owner:
                    raise Fault(
                        FaultCode.MODEL_WEIGHTS_INVALID,
                        f"Tensor {name} is in two files.",
                        tensor=name,
                    )
                self.owner[name] = file

    def span(self, name: str) -> TensorSpan:
        return self.owner[name].tensors[name]

    def array(self, name: str) -> NDArray[Any]:
        return self.owner[name].array(name)

    def close(self) -> None:
        for file in self.files:
            file.close()


class GgufFile(MappedFile):
    """A GGUF file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.header: Header = gguf_format.parse_header(
            memoryview(self._map), file_bytes=self.size_bytes
        )
        self.by_name: Mapping[str, TensorInfo] = MappingProxyType(
            {info.name: info for info in self.header.tensors}
        )

    def raw(self, info: TensorInfo, *, first_row: int, row_count: int) -> NDArray[np.uint8]:
        """Rows as they are stored, (rows, bytes of a row)."""
        row_bytes = info.type.row_bytes(info.column_count)
        start = self.header.data_start + info.offset + first_row * row_bytes
        return self.view(np.uint8, start=start, count=row_count * row_bytes).reshape(
            row_count, row_bytes
        )

    def bits(self, info: TensorInfo) -> NDArray[Any]:
        """All rows of an unquantised tensor, (rows, columns); bfloat16 as uint16."""
        dtype = {
            TensorType.F32: np.float32,
            TensorType.F16: np.float16,
            TensorType.BF16: np.uint16,
        }[info.type]
        raw = self.raw(info, first_row=0, row_count=info.row_count)
        return raw.view(dtype)


def to_float32(array: NDArray[Any], element_type: str) -> NDArray[np.float32]:
    """Returns float32 of an array whose bfloat16 bits may be carried as uint16."""
    if element_type == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, dtype=np.float32)


def to_bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds finite float32 to the nearest bfloat16, ties to even; returns the bits."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def as_bits(array: NDArray[Any], element_type: str, wanted: TensorType) -> NDArray[Any]:
    """Returns numbers of a checkpoint as the bits that llama.cpp's converter stores for them.

    Args:
        element_type: the safetensors name of the array's type.
        wanted: F32 gives uint32; F16 and BF16 give uint16.
    """
    same = {"BF16": TensorType.BF16, "F16": TensorType.F16, "F32": TensorType.F32}.get(element_type)
    if same is wanted:
        return array.view(np.uint32) if wanted is TensorType.F32 else array.view(np.uint16)
    floats = to_float32(array, element_type)
    match wanted:
        case TensorType.BF16:
            return to_bfloat16_bits(floats)
        case TensorType.F16:
            return floats.astype(np.float16).view(np.uint16)
        case _:
            return floats.view(np.uint32)


def read_json(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """Returns a JSON object of a model or adapter folder; an absent file is an empty object.

    Args:
        unique_keys: refuse a key that comes twice, of which one value would be lost in silence.
    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        document = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_unique if unique_keys else None
        )
    except (ValueError, RecursionError) as error:
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"{path.name} is not valid JSON{' with unique keys' if unique_keys else ''}.",
            file=path.name,
        ) from error
    if not isinstance(document, dict):
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID, f"{path.name} is not a JSON object.", file=path.name
        )
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key comes twice")
    return document


def _shards(folder: Path) -> list[Path]:
    index = read_json(folder / "model.safetensors.index.json")
    if index:
        weight_map = index.get("weight_map")
        listed: list[Any] = list(weight_map.values()) if isinstance(weight_map, Mapping) else [None]
        if any(not isinstance(name, str) or "/" in name or "\\" in name for name in listed):
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                "The index of the shards does not name files of its own folder.",
            )
        names = sorted(set(listed))
    else:
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
    missing = [name for name in names if not (folder / name).is_file()]
    if not names or missing:
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"Weight files are missing: {', '.join(missing[:5]) or 'model.safetensors'}.",
        )
    return [folder / name for name in names]
