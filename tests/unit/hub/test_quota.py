"""Quotas: what still fits."""

import pytest

from hub.domain.quota import Quota, Usage, check_artifact_room, check_dataset_room
from lexicon.faults import Fault, FaultCode

QUOTA = Quota(dataset_bytes=100, artifact_bytes=50)
USAGE = Usage(dataset_bytes=60, artifact_bytes=30)


def test_what_fits_to_the_last_byte_is_let_in() -> None:
    check_dataset_room(USAGE, QUOTA, pending_bytes=30, new_bytes=10)
    check_artifact_room(USAGE, QUOTA, new_bytes=20)


def test_one_byte_more_is_refused_with_the_sizes() -> None:
    """Attack 15: what is announced counts as if it were there."""
    with pytest.raises(Fault) as caught:
        check_dataset_room(USAGE, QUOTA, pending_bytes=30, new_bytes=11)
    assert caught.value.code is FaultCode.QUOTA_DATASETS_EXCEEDED
    assert caught.value.metadata["free_bytes"] == "10"
    with pytest.raises(Fault) as caught:
        check_artifact_room(USAGE, QUOTA, new_bytes=21)
    assert caught.value.code is FaultCode.QUOTA_ARTIFACTS_EXCEEDED
    assert caught.value.metadata["required_bytes"] == "21"


def test_a_plan_that_became_smaller_leaves_nothing_free_but_keeps_what_is_there() -> None:
    small = Quota(dataset_bytes=10, artifact_bytes=10)
    with pytest.raises(Fault) as caught:
        check_dataset_room(USAGE, small, pending_bytes=0, new_bytes=1)
    assert caught.value.metadata["free_bytes"] == "0"
    check_artifact_room(USAGE, small, new_bytes=-5)
