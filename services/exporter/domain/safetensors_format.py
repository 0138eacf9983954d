"""The header of a safetensors file, read strictly.

Refused: a header longer than the file or 100 MB, anything but UTF-8 JSON of the known form,
duplicate names, a size that does not follow from shape and type, gaps, overlaps and data behind the
end.
Source: the format section of the safetensors README.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn

from lexicon.faults import Fault, FaultCode

MAX_HEADER_BYTES: Final = 100_000_000
LENGTH_BYTES: Final = 8

ELEMENT_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
        "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    }
)  # fmt: skip

# Deeper nesting than the format has; checked before parsing, as the parser recurses.
_TOO_DEEP: Final = re.compile(rb"[\[{][^\]}]*[\[{][^\]}]*[\[{][^\]}]*[\[{]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpan:
    """Where a tensor lies: bytes `start` to `end` of the file; `shape` is row-major."""

    name: str
    element_type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """Tensors by name and the free texts of `__metadata__`."""

    tensors: Mapping[str, TensorSpan]
    metadata: Mapping[str, str]


def header_bytes(prefix: bytes, *, file_bytes: int) -> int:
    """Returns the length of the JSON header, given the first 8 bytes.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    if len(prefix) < LENGTH_BYTES:
        _refuse("it is too short for a header")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        _refuse("its header would lie behind its end or is longer than 100 MB")
    return length


def parse_header(header: bytes, *, file_bytes: int) -> SafetensorsHeader:
    """Reads and checks the JSON header.

    Args:
        header: exactly the bytes that `header_bytes` counted.
        file_bytes: size of the whole file.
    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    document = _document(header)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse("its metadata is not text")
    data_start = LENGTH_BYTES + len(header)
    spans = sorted(
        (_span(name, entry, data_start) for name, entry in document.items()),
        key=lambda span: (span.start, span.end),
    )
    position = data_start
    for span in spans:
        if span.start != position:
            _refuse("tensors overlap or leave a gap")
        position = span.end
    if position != file_bytes:
        _refuse("its size does not follow from its header")
    return SafetensorsHeader(
        tensors=MappingProxyType({span.name: span for span in spans}),
        metadata=MappingProxyType(metadata),
    )


def _document(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{") or _nests_deeply(header):
        _refuse("its header is not the expected JSON object")
    try:
        document = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _refuse("its header is not valid JSON in UTF-8")
    if not isinstance(document, dict):
        _refuse("its header is not a JSON object")
    return document


def _nests_deeply(header: bytes) -> bool:
    return _TOO_DEEP.search(re.sub(rb'"(?:[^"\\]|\\.)*"', b"", header)) is not None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a name comes twice in its header")
    return found


def _span(name: str, entry: Any, data_start: int) -> TensorSpan:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]} if (
            len(entry) == 3
        ):
            numbers = [*shape, start, end]
        case _:
            _refuse("an entry is not a tensor")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        _refuse("an entry's numbers are impossible")
    if dtype not in ELEMENT_BYTES or end - start != math.prod(shape) * ELEMENT_BYTES[dtype]:
        _refuse("a tensor's size does not follow from its shape and type")
    return TensorSpan(
        name=name,
        element_type=dtype,
        shape=tuple(shape),
        start=data_start + start,
        end=data_start + end,
    )


def _refuse(reason: str) -> NoReturn:
    raise Fault(FaultCode.MODEL_WEIGHTS_INVALID, f"The safetensors file is damaged: {reason}.")
