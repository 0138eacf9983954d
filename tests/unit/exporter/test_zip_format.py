"""Archives that Python's own reader takes, small ones and those beyond 4 GiB."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from exporter.domain import zip_format
from exporter.domain.zip_format import Entry
from exporter.engine.archive import _shift, bundle_in_place, checksums


def test_a_model_becomes_an_archive_in_its_place(tmp_path: Path) -> None:
    """001-37, and no byte of disk beside it: the model's own file grows into the archive."""
    content = bytes(range(256)) * 40_000
    model = tmp_path / "model.gguf"
    model.write_bytes(content)
    target = tmp_path / "bundle.zip"
    texts = {"Modelfile": "FROM ./model.gguf\n", "install.sh": "#!/bin/sh\n", "README.md": "ä\n"}
    crc32 = checksums(model).crc32
    bundle_in_place(model, target, texts, crc32=crc32, executables=frozenset({"install.sh"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.zip"]
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["model.gguf", *texts]
        assert archive.read("model.gguf") == content
        assert archive.read("README.md").decode() == "ä\n"
        rights = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
        assert rights["install.sh"] == 0o755
        assert rights["Modelfile"] == 0o644


def test_the_same_model_gives_the_same_archive(tmp_path: Path) -> None:
    made = []
    for name in ("a.zip", "b.zip"):
        model = tmp_path / "model.gguf"
        model.write_bytes(b"GGUF" * 1000)
        bundle_in_place(
            model,
            tmp_path / name,
            {"README.md": "x"},
            crc32=checksums(model).crc32,
            executables=frozenset(),
        )
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000_000])
def test_bytes_that_are_moved_up_stay_what_they_were(size: int) -> None:
    """Where the file system cannot insert a block, the content is shifted from its end."""
    content = bytes(index * 7 % 251 for index in range(min(size, 5000))) * max(1, size // 5000)
    content = content[:size]
    file = io.BytesIO(content)
    _shift(file, 4096)
    assert file.getvalue()[4096:] == content if size else True


def test_a_file_beyond_four_gibibytes_is_described_by_zip64(tmp_path: Path) -> None:
    """The data is a hole in a sparse file; only the headers are looked at."""
    size = 5 << 30
    large = Entry(name="model.gguf", crc32=7, size_bytes=size)
    head = zip_format.local_header(large, total_bytes=4096)
    assert len(head) == 4096
    small = zip_format.entry_of("README.md", b"text", offset=4096 + size)
    path = tmp_path / "large.zip"
    with path.open("wb") as out:
        out.write(head)
        out.seek(4096 + size)
        out.write(zip_format.local_header(small) + b"text")
        out.write(zip_format.directory([large, small], offset=out.tell()))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.gguf")
        assert (info.file_size, info.header_offset, info.CRC) == (size, 0, 7)
        assert archive.read("README.md") == b"text"
        with archive.open("model.gguf") as inside:
            assert inside.read(10) == bytes(10)


def test_a_local_header_names_checksum_and_size() -> None:
    entry = zip_format.entry_of("a", b"abc", offset=0)
    head = zip_format.local_header(entry)
    assert struct.unpack_from("<II", head, 14) == (zlib.crc32(b"abc"), 3)
