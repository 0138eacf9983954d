"""Small Parquet files that make their reader ask for much memory: by lies and without."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

# The largest size that the format can name: a signed number of 32 bits.
LARGEST_SIZE = (1 << 31) - 1
# Compact Thrift: the next field, a signed number as a zigzag varint.
_NEXT_I32 = 0x15


def lying_page(size_bytes: int = LARGEST_SIZE) -> bytes:
    """A file of a kilobyte whose first page says that it is much larger when it is unpacked.

    Source: Apache Parquet format, PageHeader; field 2 is uncompressed_page_size.
    """
    data = bytearray(_written(["a text that is trained on"] * 64))
    start = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).data_page_offset
    assert data[start] == _NEXT_I32
    field = _after_varint(data, start + 1)
    assert data[field] == _NEXT_I32
    data[field + 1 : _after_varint(data, field + 1)] = _varint(size_bytes << 1)
    return bytes(data)


def packed_text(size_bytes: int) -> bytes:
    """A sound file of some kilobytes with one text of so many bytes, all the same letter."""
    return _written([pa.scalar("a" * size_bytes, pa.large_string())], pa.large_string())


def repeated_rows(count: int) -> bytes:
    """A sound file of a kilobyte that has so many rows, all the same."""
    indices = pa.array([0], pa.int32()).take(pa.array([0] * count, pa.int32()))
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["the same text again"]))
    file = io.BytesIO()
    pq.write_table(pa.table({"text": column}), file, compression="zstd")
    return file.getvalue()


def row_of_nothing(count: int) -> bytes:
    """A sound file of half a kilobyte with one row: a conversation of so many empty turns."""
    turns = pa.StructArray.from_arrays([pa.nulls(count, pa.string())] * 2, ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), turns)
    file = io.BytesIO()
    pq.write_table(pa.table({"messages": rows}), file, compression="zstd")
    return file.getvalue()


def _written(values: list[object], kind: pa.DataType | None = None) -> bytes:
    table = pa.table({"text": pa.array(values, kind or pa.string())})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    return file.getvalue()


def _after_varint(data: bytearray, start: int) -> int:
    end = start
    while data[end] & 0x80:
        end += 1
    return end + 1


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
