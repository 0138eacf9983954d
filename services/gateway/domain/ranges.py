"""The part of a file that an HTTP request asks for (RFC 9110, section 14)."""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes from `start` up to but without `end`."""

    start: int
    end: int


def part_of(header: str | None, *, size_bytes: int) -> Part | None:
    """The part that a Range header asks for; None for the whole file.

    What is not one well-formed range of bytes, and a list of ranges, is ignored, as the RFC allows.

    Raises:
        ValueError: the range begins behind the end of the file.
    """
    found = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last_count = int(found[2])
        if last_count == 0 or size_bytes == 0:
            raise ValueError(header)
        return Part(start=max(0, size_bytes - last_count), end=size_bytes)
    start = int(found[1])
    end = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
    if found[2] and int(found[2]) < start:
        return None
    if start >= size_bytes:
        raise ValueError(header)
    return Part(start=start, end=end)
