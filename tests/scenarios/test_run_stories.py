"""The stories in tests/scenarios/runs go as they are told there."""

from pathlib import Path

import pytest

from tests.scenarios.run_stories import FOLDER, told


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_story_goes_as_it_is_told(path: Path) -> None:
    """001-09, 001-29, 000-27, 000-28, A4, A5, A6, A7, A13: each file names what it shows."""
    transcript = path.read_text(encoding="utf-8")
    assert told(transcript) == transcript, "python -m tests.scenarios.run_stories, read the diff"
