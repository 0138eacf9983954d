"""Datasets: what may be announced, and what arrived."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hub.domain.datasets import (
    MAX_FILE_BYTES,
    Announcement,
    Dataset,
    Refusal,
    Upload,
    UploadState,
    alive,
    announcement,
    check_arrival,
)
from lexicon.faults import Fault, FaultCode
from lexicon.names import DatasetName

NAME = DatasetName(project="acme", dataset="greetings")
NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
SHA = "0" * 64


def announced(size_bytes: int = 10, sha256: str = SHA) -> Announcement:
    return announcement(NAME, size_bytes=size_bytes, sha256=sha256, file_name="", display_name="")


def an_upload() -> Upload:
    return Upload(
        upload_id="u1",
        announced=announced(),
        object_key="datasets/u1",
        state=UploadState.PENDING,
        expire_time=NOW,
        version=None,
        refusal=None,
    )


def a_dataset() -> Dataset:
    return Dataset(
        name=NAME,
        display_name="Greetings",
        latest=None,
        version_count=1,
        create_time=NOW,
        delete_time=None,
    )


def test_names_default_to_the_dataset_id() -> None:
    assert (announced().file_name, announced().display_name) == ("greetings", "greetings")


@pytest.mark.parametrize(
    ("size_bytes", "code"),
    [
        (0, FaultCode.DATASET_EMPTY),
        (-1, FaultCode.INPUT_FIELD_INVALID),
        (MAX_FILE_BYTES + 1, FaultCode.DATASET_TOO_LARGE),
    ],
)
def test_sizes_out_of_bounds_are_refused(size_bytes: int, code: FaultCode) -> None:
    with pytest.raises(Fault) as caught:
        announced(size_bytes)
    assert caught.value.code is code


@pytest.mark.parametrize(("size_bytes", "sha256"), [(9, SHA), (10, "1" * 64)])
def test_other_bytes_than_announced_are_refused(size_bytes: int, sha256: str) -> None:
    check_arrival(an_upload(), size_bytes=10, sha256=SHA)
    with pytest.raises(Fault) as caught:
        check_arrival(an_upload(), size_bytes=size_bytes, sha256=sha256)
    assert caught.value.code is FaultCode.DATASET_CHECKSUM_MISMATCH


def test_a_missing_dataset_is_told_with_its_neighbours() -> None:
    """003-02."""
    with pytest.raises(Fault) as caught:
        alive(None, NAME, similar_ids=("greeting",))
    assert caught.value.code is FaultCode.DATASET_NOT_FOUND
    assert caught.value.message == "Dataset greetings does not exist. Did you mean greeting?"


def test_a_deleted_dataset_is_told_with_its_name_and_day() -> None:
    with pytest.raises(Fault) as caught:
        alive(replace(a_dataset(), delete_time=NOW), NAME, similar_ids=())
    assert caught.value.code is FaultCode.DATASET_DELETED
    assert caught.value.message == "Dataset greetings was deleted on 2024-02-29 12:30 UTC."


def test_a_living_dataset_is_given() -> None:
    assert alive(a_dataset(), NAME, similar_ids=()) == a_dataset()


def test_a_kept_refusal_is_raised_as_it_was() -> None:
    refusal = Refusal(
        code="DATASET_EMPTY", message="Nothing in it.", remedy="Add rows.", metadata={"rows": "0"}
    )
    fault = refusal.as_fault()
    assert (fault.code, fault.message) == (FaultCode.DATASET_EMPTY, "Nothing in it.")
    assert (fault.remedy, fault.metadata) == ("Add rows.", {"rows": "0"})
