"""A dataset file as numbered rows, read as a stream: JSONL, JSON array, CSV, TSV, Parquet, text.

What a file is follows from its content alone, so that every reader of the same bytes sees the same
rows. Every dimension a hostile file could grow in has a cap that is named here.
"""

import csv
import enum
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

import msgspec

from lexicon.faults import Fault, FaultCode

# Two million tokens of English: more than the longest context of any model we train.
MAX_ROW_BYTES = 8 << 20
MAX_ROW_COUNT = 20_000_000
MAX_COLUMN_COUNT = 1024
# A row group is decoded as a whole; a compressed bomb shows in the size it claims to have.
MAX_ROW_GROUP_BYTES = 1 << 30
PARQUET_BATCH_ROWS = 64
# Of texts that have to be read whole before their size is known.
PARQUET_BATCH_BYTES = 256 << 20
READ_BYTES = 1 << 18

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Byte order marks of UTF-16; those of UTF-32 begin with one, or with two zeros.
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
PARQUET_MAGIC = b"PAR1"
_BLANK = re.compile(r"[ \t\r\n]*")

# Columns by which rows are recognised; others ride along unread.
KNOWN_COLUMNS = frozenset(
    {
        "chosen",
        "completion",
        "conversations",
        "input",
        "instruction",
        "label",
        "messages",
        "output",
        "prompt",
        "rejected",
        "text",
    }
)


class FileKind(enum.StrEnum):
    """How the bytes of a file are laid out."""

    JSONL = "jsonl"
    JSON_ARRAY = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    TEXT = "txt"


def file_kind(path: Path) -> FileKind:
    """The layout of a file by its first bytes.

    A line of text counts as a CSV header when it names a column that rows are recognised by.

    Raises:
        Fault: DATASET_FILE_INVALID for text in units of two or four bytes.
    """
    with path.open("rb") as file:
        head = file.read(READ_BYTES).removeprefix(BYTE_ORDER_MARK)
    if head.startswith(PARQUET_MAGIC):
        return FileKind.PARQUET
    if _is_wide(head):
        raise _file_fault("the text is UTF-16 or UTF-32; save it as UTF-8 and push it again")
    stripped = head.lstrip()
    if stripped.startswith(b"{"):
        return FileKind.JSONL
    if stripped.startswith(b"["):
        return FileKind.JSON_ARRAY
    header = stripped.split(b"\n", 1)[0].decode("utf-8", errors="replace").strip()
    if _is_header(header, delimiter=","):
        return FileKind.CSV
    if _is_header(header, delimiter="\t"):
        return FileKind.TSV
    return FileKind.TEXT


def iterate_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file with their numbers from 1, never more than one row group in memory.

    Raises:
        Fault: DATASET_ROW_INVALID with the row's number, DATASET_FILE_INVALID when the file as a
            whole cannot be read.
    """
    for number, row in enumerate(_read(path), start=1):
        if number > MAX_ROW_COUNT:
            raise Fault(
                FaultCode.DATASET_FILE_INVALID,
                f"The file has more than {MAX_ROW_COUNT} rows",
                limit=MAX_ROW_COUNT,
            )
        yield number, row


def _read(path: Path) -> Iterator[dict[str, Any]]:
    match file_kind(path):
        case FileKind.JSONL:
            return _json_lines(path)
        case FileKind.JSON_ARRAY:
            return _json_array(path)
        case FileKind.CSV:
            return _delimited(path, delimiter=",")
        case FileKind.TSV:
            return _delimited(path, delimiter="\t")
        case FileKind.PARQUET:
            return _parquet(path)
        case FileKind.TEXT:
            return _plain_lines(path)


def _is_wide(head: bytes) -> bool:
    """Whether text has two or four bytes a unit: it says so, or every second byte is zero."""
    if head.startswith(_WIDE_MARKS):
        return True
    sample = head[:1024]
    return any(sample[half::2].count(0) > len(sample) // 3 for half in (0, 1))


def _is_header(line: str, *, delimiter: str) -> bool:
    cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
    if len(cells) == 1:
        return cells == ["text"]
    return any(cell in KNOWN_COLUMNS for cell in cells)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for line in _byte_lines(path):
        if not line.strip():
            continue
        number += 1
        try:
            row = msgspec.json.decode(line)
        except RecursionError:
            _refuse_row(number, "is nested too deeply")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            _refuse_row(number, f"is not valid JSON: {error}")
        yield _as_object(row, number)


def _json_array(path: Path) -> Iterator[dict[str, Any]]:
    """Elements of one top-level array, decoded one at a time from a sliding window of text."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    with path.open("r", encoding="utf-8-sig") as file:
        window = _Window(file)
        try:
            window.take("[")
            number = 0
            while not window.take("]"):
                if number and not window.take(","):
                    what = "the JSON array does not end" if not window.peek() else ""
                    raise _file_fault(what or f"there is no comma after row {number}")
                number += 1
                yield _as_object(_next_element(window, decoder, number), number)
            if window.peek():
                raise _file_fault(f"there is text after the JSON array of {number} rows")
        except UnicodeDecodeError as error:
            raise _file_fault("the text is not UTF-8") from error


class _Window:
    """The part of a text file around the place of reading.

    What lies behind is dropped only when more is read, so that many small elements behind a large
    one do not each copy what is left.
    """

    def __init__(self, file: TextIO) -> None:
        self.text = ""
        self.position = 0
        self._file = file

    def extend(self) -> bool:
        """Reads on, doubling what lies ahead; False at the end of the file."""
        ahead = self.text[self.position :]
        more = self._file.read(max(READ_BYTES, len(ahead)))
        self.text, self.position = ahead + more, 0
        return bool(more)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            blank = _BLANK.match(self.text, self.position)
            assert blank is not None
            self.position = blank.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.extend():
                return ""

    def take(self, character: str) -> bool:
        """Steps over the next character when it is this one."""
        if self.peek() != character:
            return False
        self.position += 1
        return True


def _next_element(window: _Window, decoder: json.JSONDecoder, number: int) -> object:
    """The element at the window's place; reads on while it is cut."""
    if not window.peek():
        raise _file_fault("the JSON array does not end")
    while True:
        try:
            element, end = decoder.raw_decode(window.text, window.position)
            if end - window.position > MAX_ROW_BYTES:
                _refuse_row(number, f"is longer than {MAX_ROW_BYTES >> 20} MiB")
            # A number at the very end of the window may go on in the next one.
            if end < len(window.text):
                window.position = end
                return element
            error_text = "is cut off"
        except RecursionError:
            _refuse_row(number, "is nested too deeply")
        except ValueError as error:
            error_text = f"is not valid JSON: {error}"
        if len(window.text) - window.position > MAX_ROW_BYTES:
            _refuse_row(number, f"is not valid JSON or longer than {MAX_ROW_BYTES >> 20} MiB")
        if not window.extend():
            _refuse_row(number, error_text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _delimited(path: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    # The limit is one per process; every reader sets the same value.
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _RecordLines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    try:
        header = [cell.strip() for cell in next(reader)]
        _check_columns(header)
        lines.begin_record(1)
        for cells in reader:
            lines.begin_record(number + 2)
            if not cells:
                continue
            number += 1
            if len(cells) > len(header):
                _refuse_row(number, f"has {len(cells)} columns where the header has {len(header)}")
            # A cell that is missing or empty is a value that is not there.
            yield {name: cell for name, cell in zip(header, cells, strict=False) if cell != ""}
    except csv.Error as error:
        raise _row_fault(number + 1, f"is not valid CSV: {error}") from error


class _RecordLines:
    """Lines of text for a reader whose records may span lines, and so could span the whole file."""

    def __init__(self, path: Path) -> None:
        self._lines = _text_lines(path)
        self._number = 0
        self._size = 0

    def begin_record(self, number: int) -> None:
        """What is read from here on belongs to record `number`."""
        self._number, self._size = number, 0

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            _refuse_row(self._number, f"is longer than {MAX_ROW_BYTES >> 20} MiB")
        return line


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Texts stay references into their dictionary until their size is known: a file of a few
        # bytes may repeat one of a gigabyte in every row.
        texts, longest_bytes = _text_columns(pq.ParquetFile(path))
        file = pq.ParquetFile(path, read_dictionary=texts)
        columns = file.schema_arrow.names
        _check_columns(columns)
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        if any(not 0 <= group.total_byte_size <= MAX_ROW_GROUP_BYTES for group in groups):
            raise _file_fault(
                f"a row group is larger than {MAX_ROW_GROUP_BYTES >> 20} MiB; "
                "write it with smaller row groups"
            )
        wanted = [name for name in columns if name in KNOWN_COLUMNS]
        if not wanted:
            yield from ({} for _ in range(min(file.metadata.num_rows, 1)))
            return
        batch_rows = max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // max(1, longest_bytes)))
        number = 0
        for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
            _check_sizes(batch, number)
            for row in batch.to_pylist():
                number += 1
                yield {name: value for name, value in row.items() if value is not None}
    # A date that Python cannot hold is an error of its own.
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise _file_fault("it cannot be read as Parquet") from error


def _text_columns(file: Any) -> tuple[list[str], int]:
    """Paths of the texts that can be read by reference, and how long the others may be, in bytes.

    The others are written as the end of another text, for which there is no dictionary: they are
    read whole, few at a time.

    Args:
        file: a `ParquetFile`.
    Raises:
        Fault: DATASET_FILE_INVALID for lists of such texts, of which one row may hold any number.
    """
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    texts, longest_bytes = [], 0
    for index in range(len(file.schema)):
        leaf = file.schema.column(index)
        if leaf.physical_type != "BYTE_ARRAY" or leaf.logical_type.type == "DECIMAL":
            continue
        chunks = [group.column(index) for group in groups]
        if not any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks):
            texts.append(leaf.path)
        elif "." in leaf.path:
            raise _file_fault("lists of texts are DELTA_BYTE_ARRAY; write them with a dictionary")
        else:
            sizes = [chunk.total_uncompressed_size for chunk in chunks]
            longest_bytes = max(longest_bytes, *sizes)
    return texts, longest_bytes


def _check_sizes(batch: Any, rows_before: int) -> None:
    """Refuses a row that is larger than a line of text may be; `batch` is a `RecordBatch`."""
    if sum(map(_text_bytes, batch.columns)) <= MAX_ROW_BYTES:
        return
    for index in range(batch.num_rows):
        if sum(map(_text_bytes, batch.slice(index, 1).columns)) > MAX_ROW_BYTES:
            _refuse_row(rows_before + index + 1, f"is longer than {MAX_ROW_BYTES >> 20} MiB")


def _text_bytes(array: Any) -> int:
    """Bytes of all texts in an Arrow array, repeated ones each time they come."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return pc.sum(lengths).as_py() or 0
    if pa.types.is_map(kind):
        entries = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        return _text_bytes(entries)
    if pa.types.is_nested(kind):
        inner = array.flatten()
        return sum(map(_text_bytes, inner if isinstance(inner, list) else [inner]))
    return int(array.nbytes)


def _plain_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if "\0" in line:
            raise _file_fault(f"line {number} holds a zero byte; it is not a text")
        if line.strip():
            yield {"text": line.rstrip("\r\n")}


def _check_columns(columns: list[str]) -> None:
    if len(columns) > MAX_COLUMN_COUNT:
        raise _file_fault(f"it has {len(columns)} columns; at most {MAX_COLUMN_COUNT} are read")
    if len(set(columns)) != len(columns):
        raise _file_fault("two columns have the same name")


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_byte_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _file_fault(f"line {number} is not UTF-8") from error


def _byte_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        _skip_mark(file)
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                raise _file_fault(f"line {number} is longer than {MAX_ROW_BYTES >> 20} MiB")
            yield line


def _skip_mark(file: BinaryIO) -> None:
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)


def _as_object(value: object, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse_row(number, "is not a JSON object")
    if len(value) > MAX_COLUMN_COUNT:
        _refuse_row(number, f"has {len(value)} fields; at most {MAX_COLUMN_COUNT} are read")
    return {name: item for name, item in value.items() if item is not None}


def _refuse_row(number: int, what: str) -> NoReturn:
    raise _row_fault(number, what)


def _row_fault(number: int, what: str) -> Fault:
    return Fault(FaultCode.DATASET_ROW_INVALID, f"Dataset row {number} {what}", row=number)


def _file_fault(what: str) -> Fault:
    return Fault(FaultCode.DATASET_FILE_INVALID, f"The dataset file is not usable: {what}")
