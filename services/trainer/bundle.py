"""The adapter's ZIP: the same files give the same bytes."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

# ZIP cannot say "no time"; its earliest one is used.
EARLIEST_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644
MODE_SHIFT = 16


def write_zip(files: Sequence[Path], target: Path, *, root: Path | None = None) -> None:
    """Write the files, by name and in order of their names, to the new archive `target`.

    Args:
        root: folder that the names are relative to; None for names without a folder.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        named = {path.relative_to(root).as_posix() if root else path.name: path for path in files}
        for name, path in sorted(named.items()):
            entry = zipfile.ZipInfo(name, date_time=EARLIEST_TIME)
            entry.external_attr = FILE_MODE << MODE_SHIFT
            # Trained weights are noise to a compressor: packing them only takes time.
            entry.compress_type = (
                zipfile.ZIP_STORED if path.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
            )
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)
