"""What a run is told when the agent meets something that nothing foresaw."""

import errno

import pytest

from lexicon.faults import TABLE, FaultCode
from trainer.worker import unforeseen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_own_code_wherever_it_strikes(number: int) -> None:
    fault = unforeseen(OSError(number, "No space left on device"))
    assert fault.code is FaultCode.STORAGE_FULL
    assert TABLE[fault.code].remedy


def test_an_unforeseen_error_tells_its_kind_and_nothing_else() -> None:
    """000-35"""
    fault = unforeseen(ValueError("secret of line 7"))
    assert fault.code is FaultCode.INTERNAL_UNEXPECTED
    assert "secret" not in f"{fault.message} {fault.metadata}"
