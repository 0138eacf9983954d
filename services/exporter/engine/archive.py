"""The bundle's archive, made out of the finished model without a second copy of it.

The model's bytes move up by one block so that the archive's header fits before them; where the file
system can insert a block, nothing is copied at all.
"""

import ctypes
import errno
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from exporter.domain import zip_format
from exporter.domain.zip_format import Entry
from exporter.engine.disk import PARTIAL, sync_folder

CHUNK_BYTES: Final = 4 << 20
# From linux/falloc.h: makes room inside a file by moving extents, not bytes.
_FALLOC_FL_INSERT_RANGE: Final = 0x20
# A multiple of every common block size below; larger blocks are asked for.
_HEADER_BYTES: Final = 4096
_LARGEST_HEADER_BYTES: Final = 65_536 - 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksums:
    """A file's: `crc32` for the archive, `sha256` as hexadecimal digits for whoever receives it."""

    crc32: int
    sha256: str


def checksums(path: Path) -> Checksums:
    """Reads a file once for both."""
    crc32, sha256 = 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc32 = zlib.crc32(chunk, crc32)
            sha256.update(chunk)
    return Checksums(crc32=crc32, sha256=sha256.hexdigest())


def bundle_in_place(
    model: Path, target: Path, texts: Mapping[str, str], *, crc32: int, executables: frozenset[str]
) -> None:
    """Turns `model` into the archive `target`, with the model first and the texts after it.

    Args:
        texts: content by name, in the order of the archive.
        crc32: the model's.
    """
    partial = target.with_name(target.name + PARTIAL)
    model.replace(partial)
    with partial.open("r+b") as out:
        size_bytes = out.seek(0, os.SEEK_END)
        entry = Entry(name=model.name, crc32=crc32, size_bytes=size_bytes)
        header_bytes = _make_room(out)
        out.seek(0)
        out.write(zip_format.local_header(entry, total_bytes=header_bytes))
        out.seek(header_bytes + size_bytes)
        entries = [entry]
        for name, text in texts.items():
            content = text.encode("utf-8")
            entries.append(
                zip_format.entry_of(
                    name, content, offset=out.tell(), is_executable=name in executables
                )
            )
            out.write(zip_format.local_header(entries[-1]) + content)
        out.write(zip_format.directory(entries, offset=out.tell()))
        out.flush()
        os.fsync(out.fileno())
    partial.replace(target)
    sync_folder(target.parent)


def _make_room(file: BinaryIO) -> int:
    """Moves the whole content up; returns by how many bytes."""
    file.flush()
    block_bytes = os.fstat(file.fileno()).st_blksize
    room = max(_HEADER_BYTES, block_bytes)
    if room <= _LARGEST_HEADER_BYTES and _insert(file, room):
        return room
    _shift(file, _HEADER_BYTES)
    return _HEADER_BYTES


def _insert(file: BinaryIO, size_bytes: int) -> bool:
    """Whether the file system made room by itself."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(file.fileno(), _FALLOC_FL_INSERT_RANGE, 0, size_bytes) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.ENOSPC:
        raise OSError(number, os.strerror(number))
    return False


def _shift(file: BinaryIO, distance: int) -> None:
    """Copies from the end backwards, so that nothing is overwritten before it was read."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - CHUNK_BYTES)
        file.seek(start)
        chunk = file.read(end - start)
        file.seek(start + distance)
        file.write(chunk)
        end = start
