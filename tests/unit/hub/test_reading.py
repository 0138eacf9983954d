"""What a reader of dataset files may take, and how it tells what it met."""

import json
from pathlib import Path

import pytest

from hub import child
from hub.child import MAX_PREVIEW_CHARACTERS, Job, row_texts, run
from hub.reading import Limits

MIB = 1 << 20


def a_job(path: Path, **fields: object) -> Job:
    chosen = {"memory_bytes": MIB, "cpu_seconds": 1, "wall_seconds": 1.0, **fields}
    return Job(path=str(path), **chosen)  # type: ignore[arg-type]  # fields of a test


@pytest.mark.parametrize(
    ("size_mib", "memory_mib", "cpu_seconds"),
    [(0, 512, 30), (10, 592, 130), (100, 1312, 1030), (1000, 2048, 1800)],
)
def test_a_large_file_may_take_more_than_a_small_one_but_not_without_end(
    tmp_path: Path, size_mib: int, memory_mib: int, cpu_seconds: int
) -> None:
    """attacks 18."""
    path = tmp_path / "rows"
    with path.open("wb") as file:
        # A hole: it takes no room on the disk.
        file.truncate(size_mib * MIB)
    job = Limits().job(path)
    assert (job.memory_bytes >> 20, job.cpu_seconds) == (memory_mib, cpu_seconds)
    assert job.wall_seconds == 4 * cpu_seconds


def test_what_nobody_foresaw_is_told_without_the_words_of_the_file(
    tmp_path: Path,
) -> None:
    """attacks 16: the text of an error may hold rows."""
    path = tmp_path / "secret-of-a-row"
    answer = run(a_job(path))
    assert answer.unexpected.startswith("FileNotFoundError ")
    assert answer.is_last
    assert "secret" not in answer.unexpected


def test_a_refusal_for_want_of_memory_is_told_from_others() -> None:
    """attacks 18: also where the parser calls it an error of the file."""
    of_the_file = ValueError("it cannot be read")
    of_the_file.__cause__ = MemoryError()
    assert child._is_from_memory(of_the_file)
    assert not child._is_from_memory(ValueError())
    assert not child._is_from_memory(None)


def test_rows_travel_as_json_until_the_answer_is_full() -> None:
    wide = "é" * (MAX_PREVIEW_CHARACTERS // 3)
    texts = row_texts([{"text": wide}] * 5)
    assert len(texts) == 2
    assert json.loads(texts[0]) == {"text": wide}
    (escaped,) = row_texts([{"text": "\ud800"}])
    assert escaped == '{"text": "\\ud800"}'
