"""Datasets: a named series of immutable versions, each one inspected file."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from corpus.formats import Format, Inspection
from hub.domain.labels import did_you_mean, label, sha256_text
from lexicon.faults import Fault, FaultCode
from lexicon.names import DatasetName, DatasetVersionName, RunName

# 10 GiB: far above what adapters are trained on, small enough to be inspected within minutes.
MAX_FILE_BYTES: Final = 10 << 30

# How long after the expiry of its URL an upload may still be committed: the bytes may have arrived
# in time.
COMMIT_GRACE_MINUTES: Final = 60


class UploadState(StrEnum):
    """State of an upload: PENDING -> COMMITTED | REFUSED | EXPIRED."""

    PENDING = "pending"
    COMMITTED = "committed"
    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The file that a user has announced."""

    name: DatasetName
    size_bytes: int
    sha256: str
    file_name: str
    display_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an uploaded file was refused, stored to repeat the answer."""

    code: str
    message: str
    remedy: str
    metadata: dict[str, str]

    def as_fault(self) -> Fault:
        """The refusal as it was raised."""
        fault = Fault(FaultCode(self.code), self.message, remedy=self.remedy)
        fault.metadata = dict(self.metadata)
        return fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An uploaded file before it is a version."""

    upload_id: str
    announced: Announcement
    object_key: str
    state: UploadState
    expire_time: datetime
    version: int | None
    refusal: Refusal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of an inspection; row numbers count from 1."""

    row_count: int
    duplicate_row_count: int
    character_count: int
    longest_row_characters: int
    longest_row_number: int
    multi_turn_row_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable file of a dataset."""

    name: DatasetVersionName
    format: Format
    trainable_row_count: int
    size_bytes: int
    sha256: str
    file_name: str
    object_key: str
    create_time: datetime
    stats: Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset with its newest version; `delete_time` is set once it was deleted."""

    name: DatasetName
    display_name: str
    latest: Version | None
    version_count: int
    create_time: datetime
    delete_time: datetime | None


def announcement(
    name: DatasetName, *, size_bytes: int, sha256: str, file_name: str, display_name: str
) -> Announcement:
    """Checks what a user announces.

    Raises:
        Fault: DATASET_EMPTY, DATASET_TOO_LARGE, INPUT_FIELD_INVALID.
    """
    if size_bytes == 0:
        raise Fault(FaultCode.DATASET_EMPTY, dataset=str(name))
    if size_bytes < 0:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID, "size_bytes must be more than 0.", field="size_bytes"
        )
    if size_bytes > MAX_FILE_BYTES:
        raise Fault(
            FaultCode.DATASET_TOO_LARGE,
            f"The file has {size_bytes} bytes; a dataset file may have {MAX_FILE_BYTES}.",
            size_bytes=size_bytes,
            limit_bytes=MAX_FILE_BYTES,
        )
    return Announcement(
        name=name,
        size_bytes=size_bytes,
        sha256=sha256_text(sha256, field="sha256"),
        file_name=label(file_name, field="file_name", default=name.dataset),
        display_name=label(display_name, field="display_name", default=name.dataset),
    )


def check_arrival(upload: Upload, *, size_bytes: int, sha256: str) -> None:
    """Compares the uploaded bytes with the announced ones.

    Raises:
        Fault: DATASET_CHECKSUM_MISMATCH.
    """
    announced = upload.announced
    if (size_bytes, sha256) != (announced.size_bytes, announced.sha256):
        raise Fault(
            FaultCode.DATASET_CHECKSUM_MISMATCH,
            f"{size_bytes} bytes arrived that are not the {announced.size_bytes} announced ones.",
            expected_sha256=announced.sha256,
            actual_sha256=sha256,
        )


def stats_of(inspection: Inspection) -> Stats:
    """The figures of an inspection that are kept."""
    return Stats(
        row_count=inspection.row_count,
        duplicate_row_count=inspection.duplicate_row_count,
        character_count=inspection.character_count,
        longest_row_characters=inspection.longest_row_characters,
        longest_row_number=inspection.longest_row_number,
        multi_turn_row_count=inspection.multi_turn_row_count,
    )


def own_version(text: str, run: RunName) -> DatasetVersionName:
    """The version that a run names, of its own project.

    Raises:
        Fault: INPUT_NAME_INVALID, INPUT_FIELD_INVALID.
    """
    name = DatasetVersionName.parse(text)
    if name.project != run.project:
        rule = "versions must be of the run's own project."
        raise Fault(FaultCode.INPUT_FIELD_INVALID, rule, field="versions")
    return name


def alive(dataset: Dataset | None, name: DatasetName, *, similar_ids: tuple[str, ...]) -> Dataset:
    """Returns a dataset that exists and was not deleted.

    Raises:
        Fault: DATASET_NOT_FOUND with the nearest names, DATASET_DELETED.
    """
    if dataset is None:
        raise Fault(
            FaultCode.DATASET_NOT_FOUND,
            f"Dataset {name.dataset} does not exist.{did_you_mean(similar_ids)}",
            dataset=str(name),
            similar_names=", ".join(similar_ids),
        )
    if dataset.delete_time is not None:
        raise Fault(
            FaultCode.DATASET_DELETED,
            f"Dataset {name.dataset} was deleted on {dataset.delete_time:%Y-%m-%d %H:%M} UTC.",
            dataset=str(name),
        )
    return dataset
