"""The header of a GGUF file: strict reading and exact writing.

A header is a stranger's data: every count, length and offset is checked against the bytes that are
there before anything is read or reserved, so that a damaged file ends in a fault and never beyond
its end.
Source: docs/gguf.md and ggml/src/gguf.cpp of llama.cpp; format version 3, little-endian.
"""

import enum
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, NoReturn

from exporter.domain.quantization import TensorType
from lexicon.faults import Fault, FaultCode

MAGIC: Final = b"GGUF"
VERSION: Final = 3
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = "general.alignment"

# More than any model has; a bound so that a count alone can never cost memory.
MAX_TENSORS: Final = 1 << 17
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 65_535
MAX_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 16


class ValueKind(enum.IntEnum):
    """Type of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBERS: Final[Mapping[ValueKind, struct.Struct]] = MappingProxyType(
    {
        ValueKind.UINT8: struct.Struct("<B"),
        ValueKind.INT8: struct.Struct("<b"),
        ValueKind.UINT16: struct.Struct("<H"),
        ValueKind.INT16: struct.Struct("<h"),
        ValueKind.UINT32: struct.Struct("<I"),
        ValueKind.INT32: struct.Struct("<i"),
        ValueKind.FLOAT32: struct.Struct("<f"),
        ValueKind.BOOL: struct.Struct("<?"),
        ValueKind.UINT64: struct.Struct("<Q"),
        ValueKind.INT64: struct.Struct("<q"),
        ValueKind.FLOAT64: struct.Struct("<d"),
    }
)
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_ARRAY_HEAD: Final = struct.Struct("<IQ")

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """One key with its value as it is encoded, without the key and the kind."""

    key: str
    kind: ValueKind
    encoded: bytes

    @property
    def scalar(self) -> Scalar:
        """The value of a number, a truth value or a string."""
        if self.kind is ValueKind.STRING:
            return self.encoded[8:].decode("utf-8", "replace")
        assert self.kind is not ValueKind.ARRAY
        value = _NUMBERS[self.kind].unpack(self.encoded)[0]
        assert isinstance(value, int | float)
        return value

    @property
    def items(self) -> list[Scalar]:
        """The values of an array."""
        assert self.kind is ValueKind.ARRAY
        kind_number, count = _ARRAY_HEAD.unpack_from(self.encoded)
        kind = ValueKind(kind_number)
        if kind is not ValueKind.STRING:
            return [row[0] for row in _NUMBERS[kind].iter_unpack(self.encoded[12:])]
        values: list[Scalar] = []
        position = _ARRAY_HEAD.size
        for _ in range(count):
            length = _U64.unpack_from(self.encoded, position)[0]
            position += 8
            values.append(self.encoded[position : position + length].decode("utf-8", "replace"))
            position += length
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies: row length first in `dimensions`, `offset` from `data_start`."""

    name: str
    dimensions: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def column_count(self) -> int:
        return self.dimensions[0]

    @property
    def row_count(self) -> int:
        return math.prod(self.dimensions[1:])

    @property
    def size_bytes(self) -> int:
        return self.type.row_bytes(self.column_count) * self.row_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything before the tensor data."""

    metadata: Mapping[str, Metadata]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    alignment: int

    def number(self, key: str, default: int = 0) -> int:
        """An integer of the metadata; of a per-layer array, its largest."""
        entry = self.metadata.get(key)
        if entry is None:
            return default
        if entry.kind is ValueKind.ARRAY:
            return max(
                (int(value) for value in entry.items if not isinstance(value, str)), default=default
            )
        value = entry.scalar
        return default if isinstance(value, str) else int(value)

    def text(self, key: str) -> str | None:
        entry = self.metadata.get(key)
        return str(entry.scalar) if entry and entry.kind is ValueKind.STRING else None


def parse_header(data: bytes | memoryview, *, file_bytes: int) -> Header:
    """Reads and checks a header.

    Args:
        data: the file from its first byte, at least as far as the header goes.
        file_bytes: size of the whole file; tensor data must end within it.
    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    return _Reader(memoryview(data)).header(file_bytes)


def encode_header(
    metadata: Sequence[Metadata],
    tensors: Sequence[TensorInfo],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> bytes:
    """Returns the bytes of a header, padded to where the tensor data starts."""
    parts = [MAGIC, _U32.pack(VERSION), _U64.pack(len(tensors)), _U64.pack(len(metadata))]
    for entry in metadata:
        parts += [_string(entry.key), _U32.pack(entry.kind), entry.encoded]
    for tensor in tensors:
        parts += [_string(tensor.name), _U32.pack(len(tensor.dimensions))]
        parts += [_U64.pack(size) for size in tensor.dimensions]
        parts += [_U32.pack(tensor.type), _U64.pack(tensor.offset)]
    encoded = b"".join(parts)
    return encoded + bytes(padded(len(encoded), alignment) - len(encoded))


def lay_out(
    shapes: Sequence[tuple[str, tuple[int, ...], TensorType]], *, alignment: int = DEFAULT_ALIGNMENT
) -> list[TensorInfo]:
    """Gives each tensor its offset, one after another."""
    placed: list[TensorInfo] = []
    offset = 0
    for name, dimensions, tensor_type in shapes:
        info = TensorInfo(name=name, dimensions=dimensions, type=tensor_type, offset=offset)
        placed.append(info)
        offset += padded(info.size_bytes, alignment)
    return placed


def string_value(key: str, value: str) -> Metadata:
    """A key with a text."""
    return Metadata(key=key, kind=ValueKind.STRING, encoded=_string(value))


def uint32_value(key: str, value: int) -> Metadata:
    """A key with an unsigned 32-bit number."""
    return Metadata(key=key, kind=ValueKind.UINT32, encoded=_U32.pack(value))


def bool_value(key: str, value: bool) -> Metadata:
    """A key with a truth value."""
    return Metadata(key=key, kind=ValueKind.BOOL, encoded=bytes([value]))


def with_items(entry: Metadata, changes: Mapping[int, Scalar]) -> Metadata:
    """An array with other values at some places; all others keep their bytes."""
    kind_number, count = _ARRAY_HEAD.unpack_from(entry.encoded)
    kind = ValueKind(kind_number)
    assert entry.kind is ValueKind.ARRAY
    assert all(0 <= place < count for place in changes)
    if kind is not ValueKind.STRING:
        encoded = bytearray(entry.encoded)
        for place, value in changes.items():
            form = _NUMBERS[kind]
            form.pack_into(encoded, _ARRAY_HEAD.size + place * form.size, value)
        return replace(entry, encoded=bytes(encoded))
    parts: list[bytes] = []
    kept, position = 0, _ARRAY_HEAD.size
    for place in range(max(changes, default=-1) + 1):
        start = position
        position += _U64.size + _U64.unpack_from(entry.encoded, position)[0]
        if place in changes:
            parts += [entry.encoded[kept:start], _string(str(changes[place]))]
            kept = position
    return replace(entry, encoded=b"".join([*parts, entry.encoded[kept:]]))


def padded(size: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // alignment) * alignment


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return _U64.pack(len(encoded)) + encoded


class _Reader:
    """A cursor that never passes the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def header(self, file_bytes: int) -> Header:
        if bytes(self._take(4)) != MAGIC:
            _refuse("it does not start with GGUF")
        version = self._unpack(_U32)
        if version != VERSION:
            _refuse(f"its version is {version}, not {VERSION}")
        tensor_count, key_count = self._unpack(_U64), self._unpack(_U64)
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            _refuse("it claims more tensors or keys than any model has")
        metadata = self._metadata(key_count)
        alignment = _alignment(metadata)
        tensors = self._tensors(tensor_count, alignment)
        data_start = padded(self._position, alignment)
        end = tensors[-1].offset + tensors[-1].size_bytes if tensors else 0
        if data_start + end > max(file_bytes, self._position if not tensors else 0):
            _refuse("tensor data would lie behind its end")
        return Header(
            metadata=MappingProxyType(metadata),
            tensors=tensors,
            data_start=data_start,
            alignment=alignment,
        )

    def _metadata(self, count: int) -> dict[str, Metadata]:
        found: dict[str, Metadata] = {}
        for _ in range(count):
            key = self._text(MAX_KEY_BYTES)
            if not key or key in found:
                _refuse("a key is empty or comes twice")
            kind = self._kind()
            start = self._position
            self._skip_value(kind)
            encoded = bytes(self._data[start : self._position])
            found[key] = Metadata(key=key, kind=kind, encoded=encoded)
        return found

    def _tensors(self, count: int, alignment: int) -> tuple[TensorInfo, ...]:
        found: dict[str, TensorInfo] = {}
        expected_offset = 0
        for _ in range(count):
            name = self._text(MAX_NAME_BYTES)
            if not name or name in found:
                _refuse("a tensor has no name or its name comes twice")
            dimensions = self._dimensions()
            info = TensorInfo(
                name=name,
                dimensions=dimensions,
                type=self._tensor_type(dimensions[0]),
                offset=self._unpack(_U64),
            )
            if info.offset != expected_offset:
                _refuse("tensor data overlaps or leaves a gap")
            expected_offset += padded(info.size_bytes, alignment)
            found[name] = info
        return tuple(found.values())

    def _dimensions(self) -> tuple[int, ...]:
        count = self._unpack(_U32)
        if not 1 <= count <= MAX_DIMENSIONS:
            _refuse("a tensor has no or too many dimensions")
        dimensions = tuple(self._unpack(_U64) for _ in range(count))
        # The product must fit ggml's signed 64-bit sizes also when counted in bytes of float32.
        if min(dimensions) < 1 or math.prod(dimensions) >= 1 << 61:
            _refuse("a tensor's dimensions are impossible")
        return dimensions

    def _tensor_type(self, column_count: int) -> TensorType:
        number = self._unpack(_U32)
        try:
            tensor_type = TensorType(number)
        except ValueError:
            _refuse(f"a tensor has the unknown type {number}")
        if column_count % tensor_type.block_elements != 0:
            _refuse("a tensor's rows do not fill whole blocks")
        return tensor_type

    def _kind(self) -> ValueKind:
        number = self._unpack(_U32)
        try:
            return ValueKind(number)
        except ValueError:
            _refuse(f"a value has the unknown kind {number}")

    def _skip_value(self, kind: ValueKind) -> None:
        if kind is ValueKind.STRING:
            self._skip_strings(1)
        elif kind is ValueKind.ARRAY:
            self._skip_array()
        else:
            self._take(_NUMBERS[kind].size)

    def _skip_array(self) -> None:
        kind = self._kind()
        count = self._unpack(_U64)
        if kind is ValueKind.ARRAY:
            _refuse("an array holds arrays")
        if kind is not ValueKind.STRING:
            self._take(_NUMBERS[kind].size * count)
            return
        # Each string takes at least its length field.
        if count * 8 > len(self._data) - self._position:
            _refuse("it ends in the middle of an array")
        self._skip_strings(count)

    def _skip_strings(self, count: int) -> None:
        # One loop without calls: a vocabulary has 262,144 tokens, and some headers are read often.
        data, position, size = self._data, self._position, len(self._data)
        unpack = _U64.unpack_from
        for _ in range(count):
            if position + 8 > size:
                _refuse("it ends in the middle of its header")
            position += 8 + unpack(data, position)[0]
        if position > size:
            _refuse("it ends in the middle of its header")
        self._position = position

    def _text(self, limit: int) -> str:
        length = self._unpack(_U64)
        if length > limit:
            _refuse("a name is too long")
        try:
            return bytes(self._take(length)).decode("utf-8")
        except UnicodeDecodeError:
            _refuse("a name is not UTF-8")

    def _unpack(self, form: struct.Struct) -> int:
        value = form.unpack(self._take(form.size))[0]
        assert isinstance(value, int)
        return value

    def _take(self, size: int) -> memoryview:
        if size > len(self._data) - self._position:
            _refuse("it ends in the middle of its header")
        taken = self._data[self._position : self._position + size]
        self._position += size
        return taken


def _alignment(metadata: Mapping[str, Metadata]) -> int:
    entry = metadata.get(ALIGNMENT_KEY)
    if entry is None:
        return DEFAULT_ALIGNMENT
    alignment = entry.scalar if entry.kind is ValueKind.UINT32 else 0
    if (
        not isinstance(alignment, int)
        or not 8 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        _refuse("its alignment is impossible")
    return alignment


def _refuse(reason: str) -> NoReturn:
    raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, f"The GGUF file is damaged: {reason}.")
