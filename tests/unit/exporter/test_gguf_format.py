"""The GGUF header: what is written reads back, and damage ends in a fault."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.domain import gguf_format
from exporter.domain.gguf_format import Metadata, Scalar, ValueKind
from exporter.domain.quantization import TensorType
from lexicon.faults import Fault, FaultCode

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
TYPES = st.sampled_from(list(TensorType))


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...], TensorType]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    made = []
    for name in names:
        kind = draw(TYPES)
        row = kind.block_elements * draw(st.integers(1, 3))
        rest = draw(st.lists(st.integers(1, 4), max_size=3))
        made.append((name, (row, *rest), kind))
    return made


@given(shapes=shapes(), alignment=st.sampled_from([8, 32, 64]), text=st.text(max_size=20))
@settings(max_examples=50)
def test_write_then_read_is_identity(
    shapes: list[tuple[str, tuple[int, ...], TensorType]], alignment: int, text: str
) -> None:
    tensors = gguf_format.lay_out(shapes, alignment=alignment)
    metadata = [
        gguf_format.uint32_value("general.alignment", alignment),
        gguf_format.string_value("a.text", text),
    ]
    encoded = gguf_format.encode_header(metadata, tensors, alignment=alignment)
    size = len(encoded) + sum(gguf_format.padded(t.size_bytes, alignment) for t in tensors)
    header = gguf_format.parse_header(encoded, file_bytes=size)
    assert list(header.tensors) == tensors
    assert list(header.metadata.values()) == metadata
    assert (header.data_start, header.alignment) == (len(encoded), alignment)
    assert header.text("a.text") == text


def a_file() -> bytes:
    """A small whole file with every kind of value."""
    array = gguf_format._ARRAY_HEAD.pack(ValueKind.STRING, 2) + b"".join(
        len(word).to_bytes(8, "little") + word for word in (b"one", b"")
    )
    numbers = gguf_format._ARRAY_HEAD.pack(ValueKind.INT32, 3) + b"".join(
        number.to_bytes(4, "little", signed=True) for number in (-1, 0, 7)
    )
    metadata = [
        gguf_format.string_value("general.architecture", "llama"),
        gguf_format.uint32_value("llama.block_count", 2),
        Metadata(key="words", kind=ValueKind.ARRAY, encoded=array),
        Metadata(key="numbers", kind=ValueKind.ARRAY, encoded=numbers),
        Metadata(key="flag", kind=ValueKind.BOOL, encoded=b"\1"),
    ]
    tensors = gguf_format.lay_out(
        [("a.weight", (256, 2), TensorType.Q4_K), ("b.weight", (4,), TensorType.F32)]
    )
    header = gguf_format.encode_header(metadata, tensors)
    return header + bytes(sum(gguf_format.padded(t.size_bytes, 32) for t in tensors))


def test_values_are_decoded() -> None:
    content = a_file()
    header = gguf_format.parse_header(content, file_bytes=len(content))
    assert header.metadata["words"].items == ["one", ""]
    assert header.metadata["numbers"].items == [-1, 0, 7]
    assert header.metadata["flag"].scalar is True
    assert header.number("llama.block_count") == 2
    assert header.number("numbers") == 7
    assert header.number("absent", 5) == 5


def test_every_cut_is_refused() -> None:
    content = a_file()
    header = gguf_format.parse_header(content, file_bytes=len(content))
    for length in range(header.data_start):
        with pytest.raises(Fault) as caught:
            gguf_format.parse_header(content[:length], file_bytes=length)
        assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID


def test_damaged_headers_are_refused_or_stay_within_the_file() -> None:
    """Attack 5, a small share of it: the full million runs apart."""
    content = a_file()
    rng = random.Random(5)
    codes = set()
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(400)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            header = gguf_format.parse_header(bytes(damaged), file_bytes=len(damaged))
        except Fault as fault:
            codes.add(fault.code)
            continue
        for tensor in header.tensors:
            assert header.data_start + tensor.offset + tensor.size_bytes <= len(damaged)
    assert codes == {FaultCode.MODEL_WEIGHTS_INVALID}


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [(0, b"GGML", "start with GGUF"), (4, b"\2", "version"), (8, b"\xff" * 8, "more tensors")],
)
def test_what_is_wrong_is_named(at: int, value: bytes, reason: str) -> None:
    content = bytearray(a_file())
    content[at : at + len(value)] = value
    with pytest.raises(Fault, match=reason):
        gguf_format.parse_header(bytes(content), file_bytes=len(content))


def test_a_key_that_comes_twice_is_refused() -> None:
    twice = [gguf_format.uint32_value("same", 1), gguf_format.uint32_value("same", 2)]
    content = gguf_format.encode_header(twice, [])
    with pytest.raises(Fault, match="twice"):
        gguf_format.parse_header(content, file_bytes=len(content))


@given(
    texts=st.lists(st.text(max_size=6), min_size=1, max_size=8),
    numbers=st.lists(st.integers(-5, 5), min_size=1, max_size=8),
    data=st.data(),
)
def test_items_that_are_replaced_are_the_only_ones_that_change(
    texts: list[str], numbers: list[int], data: st.DataObject
) -> None:
    head = gguf_format._ARRAY_HEAD
    words = head.pack(ValueKind.STRING, len(texts)) + b"".join(map(gguf_format._string, texts))
    sizes = head.pack(ValueKind.INT32, len(numbers)) + b"".join(
        number.to_bytes(4, "little", signed=True) for number in numbers
    )
    for encoded, values, value in ((words, texts, st.text(max_size=6)), (sizes, numbers, INT32)):
        changes: dict[int, Scalar] = data.draw(
            st.dictionaries(st.integers(0, len(values) - 1), value)
        )
        entry = Metadata(key="key", kind=ValueKind.ARRAY, encoded=encoded)
        wanted = [changes.get(place, old) for place, old in enumerate(values)]
        changed = gguf_format.with_items(entry, changes)
        assert changed.items == wanted
        assert len(changed.encoded) - len(encoded) == sum(
            len(str(one).encode()) - len(str(old).encode())
            for one, old in zip(wanted, values, strict=True)
            if encoded is words
        )
