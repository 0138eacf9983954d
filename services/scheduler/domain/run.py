"""A run and what belongs to it: its terms, its open task, its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from lexicon.faults import Stage
from scheduler.domain import tasks
from scheduler.domain.activity import Activity
from scheduler.domain.clock import Clock
from scheduler.domain.tasks import Lease, RunFault, Task

# A wire message that the domain carries along and never reads.
Document = bytes


class State(StrEnum):
    """The seven states that users see."""

    QUEUED = "QUEUED"
    WAITING_FOR_GPU = "WAITING_FOR_GPU"
    TRAINING = "TRAINING"
    RETRYING = "RETRYING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

# Stages in the order in which a run passes through them.
STAGE_ORDER: Final[Mapping[Stage, int]] = {stage: index for index, stage in enumerate(Stage)}


class FinishCause(StrEnum):
    """Who asked for the end of the training."""

    USER = "USER"
    TIMEOUT = "TIMEOUT"
    BUDGET = "BUDGET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was agreed at submission; nothing changes it later.

    Attributes:
        rate_micros_per_minute: price of a whole minute, in millionths of a credit.
        hold_micros: reserved at submission; the charge never exceeds it.
        budget_micros: most that may be charged, at most the hold.
        timeout: longest training of an attempt from its first step; None for no limit.
        vouched: verified model without an amber finding: failures of the platform are refunded.
        gguf: whether a GGUF is made after the adapter.
        needs: capabilities that a node must have to train it.
    """

    tier: str
    rate_micros_per_minute: int
    hold_micros: int
    budget_micros: int
    timeout: timedelta | None
    vouched: bool
    gguf: bool
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """From where another attempt resumes."""

    step: int
    time: datetime
    fencing_epoch: int
    files: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The latest figures; `document` has all of them."""

    step: int
    total_steps: int
    loss: float
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Training was asked to end and to keep the work."""

    cause: FinishCause
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """An artifact file that is safely stored; `document` describes it."""

    artifact: str
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as the rules see it.

    Attributes:
        traceparent: W3C trace context of the submission.
        version: rises with every commit; a commit on an old version is refused.
        sequence: number of its newest event.
        attempt: attempt of the training, 0 before the first.
        activity: what the node of the lease does while it has no metrics, as last reported.
        adapter: files of the adapter; empty before it is stored.
        progress_time: when progress was last reported.
        update_time: time of the newest decision; time does not go back behind it.
    """

    name: str
    version: int
    state: State
    stage: Stage
    terms: Terms
    task: Task
    submit_time: datetime
    update_time: datetime
    traceparent: str = ""
    clock: Clock = field(default_factory=Clock)
    sequence: int = 0
    attempt: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    cancel_request_time: datetime | None = None
    finish: Finish | None = None
    fault: RunFault | None = None
    metrics: Metrics | None = None
    activity: Activity | None = None
    checkpoint: Checkpoint | None = None
    samples: Document = b""
    proofs: Document = b""
    adapter: Document = b""
    artifact: str = ""
    warning_count: int = 0
    progress_time: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it will never change again."""
        return self.state in TERMINAL

    @property
    def lease(self) -> Lease | None:
        """The lease under way."""
        return self.task.lease

    @property
    def fencing_epoch(self) -> int:
        """Epoch of its newest lease."""
        return self.task.fencing_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was submitted and what it meant then; nothing changes it later.

    Attributes:
        inputs: where the files of model and datasets lie.
        fingerprint: equal for equal configurations.
        source_run: run that it repeats; empty otherwise.
    """

    spec: Document
    snapshot: Document
    quote: Document
    inputs: Document
    plan: str
    fingerprint: str
    source_run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the user may change at any time."""

    display_name: str
    tags: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWarning:
    """Something that the user should know and that did not end the run."""

    code: str
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run with everything that is shown of it.

    Attributes:
        earlier: files of superseded checkpoints, newest first; of a run that is tried again alone.
    """

    run: Run
    submission: Submission
    labels: Labels
    warnings: tuple[RunWarning, ...] = ()
    attempts: tuple[Lease, ...] = ()
    earlier: tuple[Document, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def task(self) -> Task:
        """The open task of the run."""
        return self.run.task


def check(run: Run) -> None:
    """Asserts what must be true of every run; the CHECKs of the tables say the same."""
    assert run.has_ended == (run.end_time is not None), run.name
    assert run.has_ended == (run.stage is Stage.DONE), run.name
    assert not (run.has_ended and run.lease), run.name
    assert (run.state is State.FAILED) == (run.fault is not None), run.name
    tasks.check(run.task)
    assert run.lease is not None or not run.clock.ticks, run.name
    assert run.lease is not None or run.activity is None, run.name
