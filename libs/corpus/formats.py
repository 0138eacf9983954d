"""Inspection of a dataset file: which format it has, what is in it, and why it cannot be used."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from corpus.rows import FileKind, file_kind, iterate_rows
from corpus.samples import (
    ChatSample,
    KtoSample,
    PreferenceSample,
    Role,
    Sample,
    TextSample,
    to_sample,
)
from corpus.shapes import Format, check_row, guess
from lexicon.faults import Fault, FaultCode

__all__ = ["Format", "Inspection", "inspect_file", "iterate_rows"]

# Exact copies are found among this many distinct rows; 8 bytes of hash each bound the memory.
MAX_DISTINCT_ROWS = 1_000_000
# A name that ends so promises a layout; a file that breaks the promise is not read as plain text.
_STRUCTURED_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".parquet"})
_DELIMITED_SUFFIXES = frozenset({".csv", ".tsv"})

_NO_VALID_ROWS = (
    "No valid training rows found; check that columns match instruction/output, messages, or "
    "prompt/completion format."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a whole pass over a file found; row numbers count from 1."""

    format: Format
    detected_from_row: int
    row_count: int
    trainable_row_count: int
    duplicate_row_count: int
    character_count: int
    longest_row_characters: int
    longest_row_number: int
    multi_turn_row_count: int


def inspect_file(path: Path, *, file_name: str | None = None) -> Inspection:
    """Reads a whole file once and says what it holds.

    Args:
        file_name: Name the user gave the file, when `path` has another one.
    Raises:
        Fault: DATASET_EMPTY, DATASET_NO_VALID_ROWS, DATASET_FORMAT_MIXED, DATASET_FIELD_MISSING,
            DATASET_ROW_INVALID or DATASET_FILE_INVALID; those about a row carry its number.
    """
    if path.stat().st_size == 0:
        raise Fault(FaultCode.DATASET_EMPTY)
    _check_promise(path, file_name or path.name)
    tally = _Tally()
    for number, row in iterate_rows(path):
        tally.add(row, number)
    return tally.result()


def _check_promise(path: Path, file_name: str) -> None:
    if file_kind(path) is not FileKind.TEXT:
        return
    suffix = Path(file_name).suffix.lower()
    with path.open("rb") as file:
        blank = not file.read(1 << 16).strip()
    if blank:
        return
    if suffix in _DELIMITED_SUFFIXES:
        raise Fault(FaultCode.DATASET_NO_VALID_ROWS, _NO_VALID_ROWS)
    if suffix in _STRUCTURED_SUFFIXES:
        raise Fault(
            FaultCode.DATASET_FILE_INVALID,
            f"The dataset file is not usable: its name ends in {suffix}, its content is not that",
        )


class _Tally:
    """Running figures of one pass."""

    def __init__(self) -> None:
        self._format: Format | None = None
        self._detected_from_row = 0
        self._first_unknown_row = 0
        self._rows = 0
        self._trainable = 0
        self._duplicates = 0
        self._characters = 0
        self._longest = (0, 0)
        self._multi_turn = 0
        self._seen: set[bytes] = set()

    def add(self, row: Mapping[str, Any], number: int) -> None:
        """Counts one row, or refuses the file because of it."""
        self._rows = number
        if self._format is None:
            self._format = guess(row)
            self._detected_from_row = number
            if self._format is None:
                self._first_unknown_row = self._first_unknown_row or number
                return
        check_row(row, number, expected=self._format, detected_from_row=self._detected_from_row)
        if self._first_unknown_row:
            # A row before the first known one had no field of the format that was found.
            check_row(
                {},
                self._first_unknown_row,
                expected=self._format,
                detected_from_row=self._detected_from_row,
            )
        sample = to_sample(row, self._format, number)
        if sample is not None:
            self._count(sample, number)

    def _count(self, sample: Sample, number: int) -> None:
        texts, answers = _measure(sample)
        characters = sum(len(text) for _, text in texts)
        self._trainable += 1
        self._characters += characters
        self._longest = max(self._longest, (characters, -number))
        self._multi_turn += answers > 1
        joined = "\x00".join(f"{tag}\x01{text}" for tag, text in texts)
        digest = hashlib.blake2b(joined.encode(), digest_size=8).digest()
        if digest in self._seen:
            self._duplicates += 1
        elif len(self._seen) < MAX_DISTINCT_ROWS:
            self._seen.add(digest)

    def result(self) -> Inspection:
        """The figures of the whole file."""
        if self._rows == 0:
            raise Fault(FaultCode.DATASET_EMPTY)
        if self._format is None or self._trainable == 0:
            raise Fault(FaultCode.DATASET_NO_VALID_ROWS, _NO_VALID_ROWS, rows=self._rows)
        return Inspection(
            format=self._format,
            detected_from_row=self._detected_from_row,
            row_count=self._rows,
            trainable_row_count=self._trainable,
            duplicate_row_count=self._duplicates,
            character_count=self._characters,
            longest_row_characters=self._longest[0],
            longest_row_number=-self._longest[1],
            multi_turn_row_count=self._multi_turn,
        )


def _measure(sample: Sample) -> tuple[list[tuple[str, str]], int]:
    """Texts of a sample, each with what it is, and the number of assistant turns."""
    match sample:
        case TextSample(text=text):
            return [("text", text)], 1
        case ChatSample(messages=messages):
            kinds = [""] * len(messages)
        case PreferenceSample(prompt=prompt, chosen=chosen, rejected=rejected):
            messages = prompt + chosen + rejected
            kinds = (
                ["prompt"] * len(prompt) + ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
            )
        case KtoSample(prompt=prompt, completion=completion, desirable=desirable):
            messages = prompt + completion
            kinds = [f"desirable={desirable}"] * len(messages)
        case _:
            assert_never(sample)
    answers = sum(message.role is Role.ASSISTANT for message in messages)
    tagged = zip(kinds, messages, strict=True)
    return [(f"{kind}/{message.role}", message.content) for kind, message in tagged], answers
