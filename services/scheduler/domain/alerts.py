"""What operators must know, and how often an alert is sent before it is given up."""

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from lexicon.faults import TABLE, Category, FaultCode
from scheduler.domain.failures import is_oom_repeated
from scheduler.domain.run import Document
from scheduler.domain.tasks import RunFault

# A try without an answer is made again after this, then after twice as long, up to 21 minutes;
# together the tries span two hours.
RETRY_REST: Final = timedelta(seconds=5)
RETRY_DOUBLINGS: Final = 8
MAX_TRIES: Final = 14
# An export's failures that no user can mend: a full disk, a machine that computes or keeps wrongly,
# a merge that is not the adapter's.
_OF_THE_PLATFORM: Final = frozenset(
    {
        FaultCode.EXPORT_DISK_FULL,
        FaultCode.EXPORT_MERGE_MISMATCH,
        FaultCode.EXPORT_QUANTIZATION_BROKEN,
        FaultCode.EXPORT_VERIFY_MISMATCH,
    }
)


class Reason(enum.StrEnum):
    """Why operators are notified."""

    INTERNAL_FAULT = "INTERNAL_FAULT"
    OOM_REPEATED = "OOM_REPEATED"


class AlertChannel(enum.StrEnum):
    """How operators are notified."""

    NATS = "nats"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An alert on its way through one channel.

    Attributes:
        try_count: tries with this one.
    """

    alert_id: str
    channel: AlertChannel
    code: str
    payload: Document
    try_count: int

    @property
    def is_last_try(self) -> bool:
        """Whether it is given up when this try fails."""
        return self.try_count >= MAX_TRIES


def reason_for(fault: RunFault, *, same_oom_count: int) -> Reason | None:
    """Why operators are notified of a failure (000-12, 004-07); None when users can mend it.

    Args:
        same_oom_count: earlier runs of the same configuration that ran out of memory.
    """
    if TABLE[fault.code].category is Category.INTERNAL or fault.code in _OF_THE_PLATFORM:
        return Reason.INTERNAL_FAULT
    if is_oom_repeated(fault, same_oom_count=same_oom_count):
        return Reason.OOM_REPEATED
    return None
