"""A row of the table of fault codes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Category(StrEnum):
    """The small closed set of failure kinds; the names are those of the contract."""

    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DATASET_VALIDATION = "DATASET_VALIDATION"
    UNSUPPORTED_ARCHITECTURE = "UNSUPPORTED_ARCHITECTURE"
    TOKENIZATION = "TOKENIZATION"
    GPU_NODE_LOST = "GPU_NODE_LOST"
    SUBMISSION_REJECTED = "SUBMISSION_REJECTED"
    TRAINING = "TRAINING"
    EXPORT = "EXPORT"
    DEPENDENCY = "DEPENDENCY"
    LIMIT = "LIMIT"
    INTERNAL = "INTERNAL"


class Owner(StrEnum):
    """Who is responsible for a failure; the refund policy depends on it."""

    USER = "USER"
    PLATFORM = "PLATFORM"


class Retry(StrEnum):
    """Whether a retry may succeed: never, unchanged, or with a smaller configuration."""

    NEVER = "NEVER"
    SAME = "SAME"
    SMALLER = "SMALLER"


class Stage(StrEnum):
    """Where in a run a fault happened, in the order in which a run passes through."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    DATA_DOWNLOAD = "data_download"
    INITIALIZATION = "initialization"
    TRAINING = "training"
    SAVING = "saving"
    UPLOAD = "upload"
    EXPORTING = "exporting"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One row of the table of codes.

    Attributes:
        category: kind of failure, one of the closed set.
        owner: who is responsible.
        retry: whether a retry may succeed.
        refundable: whether a run on a verified model that ends with this code is refunded.
        grpc_status: name of the gRPC status, for example `INVALID_ARGUMENT`.
        meaning: what happened, one sentence; the message when a fault is raised without one.
        remedy: what to do about it.
        symptoms: what people see before they know the code: log lines, exact messages.
        variants: remedies for circumstances in which the usual one is wrong, by name.
    """

    category: Category
    owner: Owner
    retry: Retry
    refundable: bool
    grpc_status: str
    meaning: str
    remedy: str
    symptoms: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def retryable(self) -> bool:
        """Whether the request may succeed when it is made again, as it was or smaller."""
        return self.retry is not Retry.NEVER
