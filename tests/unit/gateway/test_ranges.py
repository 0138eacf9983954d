"""RFC 9110, section 14: which bytes a Range header asks for."""

import pytest

from gateway.http import Part, part_of


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 10),
        ("bytes=4-", 4, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-30", 0, 10),
        ("bytes=9-9", 9, 10),
    ],
)
def test_one_range_is_cut_to_the_file(header: str, start: int, end: int) -> None:
    assert part_of(header, size_bytes=10) == Part(start=start, end=end)


@pytest.mark.parametrize(
    "header", [None, "", "bytes=-", "bytes=5-4", "items=0-1", "bytes=0-1,3-4", "bytes=a-b"]
)
def test_what_is_not_one_range_asks_for_the_whole_file(header: str | None) -> None:
    assert part_of(header, size_bytes=10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        part_of(header, size_bytes=10)
