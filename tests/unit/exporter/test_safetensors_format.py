"""The safetensors header: hostile ones are refused, honest ones are read."""

import json
from typing import Any

import pytest

from exporter.domain import safetensors_format
from lexicon.faults import Fault, FaultCode

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    "c": {"dtype": "F32", "shape": [0, 4], "data_offsets": [16, 16]},
}


def read(
    document: object, *, data_bytes: int = 16, raw: bytes | None = None
) -> safetensors_format.SafetensorsHeader:
    header = json.dumps(document).encode() if raw is None else raw
    size = 8 + len(header) + data_bytes
    prefix = len(header).to_bytes(8, "little")
    length = safetensors_format.header_bytes(prefix, file_bytes=size)
    return safetensors_format.parse_header(header[:length], file_bytes=size)


def changed(name: str, **fields: object) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


def test_an_honest_header_is_read() -> None:
    header = read(GOOD)
    assert header.metadata == {"format": "pt"}
    span = header.tensors["a"]
    assert (span.shape, span.element_type, span.end - span.start) == ((2, 3), "BF16", 12)


@pytest.mark.parametrize(
    "document",
    [
        changed("a", data_offsets=[0, 11]),
        changed("a", data_offsets=[-1, 11]),
        changed("a", data_offsets=[0, 1 << 63]),
        changed("a", shape=[1 << 40, 1 << 40]),
        changed("a", shape=[2.0, 3]),
        changed("a", shape=[True, 6]),
        changed("a", dtype="PICKLE"),
        changed("b", data_offsets=[8, 12]),
        changed("b", data_offsets=[20, 24]),
        changed("a", extra=1),
        {**GOOD, "__metadata__": {"format": 1}},
        {**GOOD, "a": [1, 2]},
        [],
        {"a": {"dtype": "F32", "shape": [[[[[[1]]]]]], "data_offsets": [0, 4]}},
    ],
)
def test_an_impossible_header_is_refused(document: object) -> None:
    """Attack 6: gaps, overlaps, sizes that do not follow, types that are not numbers."""
    with pytest.raises(Fault) as caught:
        read(document)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b"",
        b"null",
        b'{"a": NaN}',
    ],
)
def test_hostile_json_is_refused(raw: bytes) -> None:
    with pytest.raises(Fault):
        read(None, raw=raw)


@pytest.mark.parametrize("length", [1 << 63, 101_000_000, 1000])
def test_a_header_longer_than_the_file_is_refused(length: int) -> None:
    with pytest.raises(Fault):
        safetensors_format.header_bytes(length.to_bytes(8, "little"), file_bytes=500)


def test_data_behind_the_last_tensor_is_refused() -> None:
    with pytest.raises(Fault):
        read(GOOD, data_bytes=17)
