"""Which failures operators hear of."""

import pytest

from lexicon.faults import FaultCode, Stage
from scheduler.domain.alerts import Reason, reason_for
from scheduler.domain.tasks import RunFault


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FaultCode.INTERNAL_UNEXPECTED, Reason.INTERNAL_FAULT),
        (FaultCode.EXPORT_DISK_FULL, Reason.INTERNAL_FAULT),
        (FaultCode.EXPORT_MERGE_MISMATCH, Reason.INTERNAL_FAULT),
        (FaultCode.EXPORT_QUANTIZATION_BROKEN, Reason.INTERNAL_FAULT),
        (FaultCode.EXPORT_VERIFY_MISMATCH, Reason.INTERNAL_FAULT),
        (FaultCode.EXPORT_WRONG_BASE, None),
        (FaultCode.EXPORT_NOOP_MERGE, None),
        (FaultCode.RUNTIME_GPU_OOM, None),
    ],
)
def test_operators_hear_of_what_users_cannot_mend(code: FaultCode, reason: Reason | None) -> None:
    """A wrong merge is ours as much as a broken disk is; an adapter that learned nothing is not."""
    fault = RunFault(code=code, message="as it happened", remedy="", stage=Stage.EXPORTING)
    assert reason_for(fault, same_oom_count=0) is reason
