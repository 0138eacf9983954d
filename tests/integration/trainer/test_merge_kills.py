"""Kills between two runs of a continual training; `tests.chaos.resume` tries every point."""

from pathlib import Path

import pytest

from tests.chaos import merges
from tests.support.fresh import in_fresh_process
from tests.support.ptrace import CAN_FAIL_CALLS

pytestmark = pytest.mark.integration
# Neighbouring boundaries are the two sides of one call; a stride that is odd meets both sides.
STRIDE = 17


@pytest.mark.skipif(not CAN_FAIL_CALLS, reason="processes are stopped by ptrace on x86-64 Linux")
def test_a_merge_cut_anywhere_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    """001-24, 002-12, 002-34: the second merge, whose adapter moves the first one's"""
    found = in_fresh_process(
        merges.trial, tmp_path, print, merge_steps=(2 * merges.RUN_STEPS,), stride=STRIDE
    )
    assert found["different"] == 0
    assert found["steps_lost_max"] <= 1
    assert found["kill_points"] >= 10
