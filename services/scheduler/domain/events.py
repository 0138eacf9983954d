"""What a decision publishes: the events of a run, numbered without a gap."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from lexicon.faults import Stage
from scheduler.domain.activity import Activity
from scheduler.domain.clock import Reading
from scheduler.domain.run import Document, Metrics, State, StoredFile
from scheduler.domain.tasks import RunFault


class ClockChange(StrEnum):
    """What the billable clock did."""

    STARTED = "STARTED"
    PAUSED = "PAUSED"
    RESUMED = "RESUMED"
    STOPPED = "STOPPED"
    VOIDED = "VOIDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted:
    """The first event; `document` is the run as submitted."""

    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """State or stage changed."""

    from_state: State
    from_stage: Stage
    node: str
    reason: str
    fault: RunFault | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockChanged:
    """The billable clock moved; `void_from` belongs to VOIDED, None there means since its start."""

    change: ClockChange
    reason: str
    void_from: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """The figures, the clocks and the cost so far."""

    metrics: Metrics | None
    reading: Reading
    cost_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommitted:
    """Another attempt would resume from here."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactStored:
    """A file can be downloaded."""

    file: StoredFile


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesRecorded:
    """Samples were made."""

    samples: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityChanged:
    """A node does something else, or is further with it."""

    activity: Activity


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last event; nothing follows."""

    state: State
    fault: RunFault | None
    reading: Reading
    rate_micros_per_minute: int
    refundable: bool


Body: TypeAlias = (
    RunSubmitted
    | StateChanged
    | ClockChanged
    | Progressed
    | Warned
    | CheckpointCommitted
    | ArtifactStored
    | SamplesRecorded
    | ActivityChanged
    | Ended
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened; state and stage are those after it."""

    sequence: int
    time: datetime
    attempt: int
    state: State
    stage: Stage
    body: Body
