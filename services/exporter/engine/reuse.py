"""Encoded tensors that no adapter touched, kept beside their base so that they are encoded once."""

import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.gguf_format import TensorInfo
from exporter.engine.disk import PARTIAL, forget_leftovers

FOLDER_NAME: Final = "encoded"
# Nothing is kept when less than this many times its size would stay free: exports come first.
FREE_TIMES: Final = 10
# CRC-32 of the rows, little-endian, behind them.
SUM_BYTES: Final = 4


class EncodedStore:
    """Files by type and tensor; each appears whole or not at all, whoever writes it."""

    def __init__(self, base_folder: Path, *, version: str) -> None:
        """Keeps entries below the base's folder, apart for each version of llama.cpp."""
        self._folder = base_folder / FOLDER_NAME / version
        self.was_used = False
        forget_leftovers(self._folder, f"*/*{PARTIAL}")

    def find(self, info: TensorInfo) -> NDArray[np.uint8] | None:
        """The tensor's rows as they were encoded before, (rows, bytes of a row).

        None also for those that are not what was kept: a damaged file is encoded again.
        """
        path = self._path(info)
        if not path.is_file():
            return None
        if path.stat().st_size == info.size_bytes + SUM_BYTES:
            kept: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
            rows = kept[: info.size_bytes]
            if kept[info.size_bytes :].tobytes() == _sum(rows):
                self.was_used = True
                return rows.reshape(info.row_count, info.size_bytes // info.row_count)
        path.unlink(missing_ok=True)
        return None

    def forget(self) -> None:
        """Deletes everything that was kept of this base."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def keep(self, info: TensorInfo, rows: NDArray[np.uint8]) -> None:
        """Keeps a tensor's rows for the next export; a full disk only means that it is not kept."""
        path = self._path(info)
        if path.is_file():
            return
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < FREE_TIMES * info.size_bytes:
                return
            descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=PARTIAL)
            try:
                with open(descriptor, "wb") as out:
                    out.write(rows.data)
                    out.write(_sum(rows))
                    out.flush()
                    os.fsync(out.fileno())
                Path(name).replace(path)
            finally:
                Path(name).unlink(missing_ok=True)

    def _path(self, info: TensorInfo) -> Path:
        # Names come from a checked header, but a path must never follow from them alone.
        safe = "".join(c if c.isalnum() or c in "._-" else "%" for c in info.name)
        return self._folder / info.type.name / f"{safe}.bin"


def _sum(rows: NDArray[np.uint8]) -> bytes:
    return zlib.crc32(np.ascontiguousarray(rows).data).to_bytes(SUM_BYTES, "little")
