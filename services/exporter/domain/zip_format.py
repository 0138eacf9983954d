"""A ZIP archive of stored files, piece by piece, for files too large to copy.

The pieces are written around data that already lies in its place. ZIP64 fields appear only where a
number needs them, as some readers know nothing of them.
Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOCAL: Final = struct.Struct("<IHHHHHIIIHH")
_CENTRAL: Final = struct.Struct("<IHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<IHHHHIIH")
_END_64: Final = struct.Struct("<IQHHIIQQQQ")
_LOCATOR_64: Final = struct.Struct("<IIQI")
_LIMIT_32: Final = 0xFFFFFFFF
_VERSION: Final = 20
_VERSION_64: Final = 45
_UNIX: Final = 3 << 8
# Names are UTF-8.
_FLAGS: Final = 1 << 11
# Extra field that only fills space; the id is the one that alignment tools use.
_PADDING_ID: Final = 0xD935
_ZIP64_ID: Final = 1
# 2024-01-01 00:00, in MS-DOS form: equal inputs give equal archives.
_DATE: Final = (2024 - 1980) << 9 | 1 << 5 | 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stored file: its checksum and where its local header starts."""

    name: str
    crc32: int
    size_bytes: int
    offset: int = 0
    is_executable: bool = False

    @property
    def _needs_64(self) -> bool:
        return self.size_bytes >= _LIMIT_32


def entry_of(name: str, content: bytes, *, offset: int, is_executable: bool = False) -> Entry:
    """An entry for a file that is in memory."""
    return Entry(
        name=name,
        crc32=zlib.crc32(content),
        size_bytes=len(content),
        offset=offset,
        is_executable=is_executable,
    )


def local_header(entry: Entry, *, total_bytes: int = 0) -> bytes:
    """What precedes a file's data, filled up to `total_bytes` when that is given."""
    name = entry.name.encode()
    extra = b""
    size = entry.size_bytes
    if entry._needs_64:
        extra = struct.pack("<HHQQ", _ZIP64_ID, 16, size, size)
        size = _LIMIT_32
    filling = total_bytes - _LOCAL.size - len(name) - len(extra)
    if total_bytes:
        assert filling >= 4
        extra += struct.pack("<HH", _PADDING_ID, filling - 4) + bytes(filling - 4)
    version = _VERSION_64 if entry._needs_64 else _VERSION
    head = _LOCAL.pack(
        0x04034B50, version, _FLAGS, 0, 0, _DATE, entry.crc32, size, size, len(name), len(extra)
    )
    return head + name + extra


def directory(entries: Sequence[Entry], *, offset: int) -> bytes:
    """The central directory that starts at `offset` and ends the archive."""
    body = b"".join(_central_entry(entry) for entry in entries)
    count, size = len(entries), len(body)
    records = b""
    if offset >= _LIMIT_32:
        records = _END_64.pack(
            0x06064B50, _END_64.size - 12, _UNIX | _VERSION_64, _VERSION_64, 0, 0, count, count,
            size, offset,
        )  # fmt: skip
        records += _LOCATOR_64.pack(0x07064B50, 0, offset + size, 1)
    end = _END.pack(0x06054B50, 0, 0, count, count, size, min(offset, _LIMIT_32), 0)
    return body + records + end


def _central_entry(entry: Entry) -> bytes:
    name = entry.name.encode()
    large = [number for number in (entry.size_bytes,) * 2 if number >= _LIMIT_32]
    large += [entry.offset] if entry.offset >= _LIMIT_32 else []
    extra = struct.pack(f"<HH{len(large)}Q", _ZIP64_ID, 8 * len(large), *large) if large else b""
    version = _VERSION_64 if large else _VERSION
    size = min(entry.size_bytes, _LIMIT_32)
    # Unix rights in the upper half.
    rights = (0o100755 if entry.is_executable else 0o100644) << 16
    head = _CENTRAL.pack(
        0x02014B50, _UNIX | version, version, _FLAGS, 0, 0, _DATE, entry.crc32, size, size,
        len(name), len(extra), 0, 0, 0, rights, min(entry.offset, _LIMIT_32),
    )  # fmt: skip
    return head + name + extra
