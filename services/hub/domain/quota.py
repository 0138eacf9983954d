"""Quotas: how many bytes of datasets and of artifacts a project may keep."""

from dataclasses import dataclass

from lexicon.faults import Fault, FaultCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes that a project keeps."""

    dataset_bytes: int
    artifact_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Bytes that a project may keep by its plan."""

    dataset_bytes: int
    artifact_bytes: int


def check_dataset_room(usage: Usage, quota: Quota, *, pending_bytes: int, new_bytes: int) -> None:
    """Refuses a dataset file that does not fit beside what is kept and what is announced.

    Raises:
        Fault: QUOTA_DATASETS_EXCEEDED with the sizes.
    """
    free_bytes = max(0, quota.dataset_bytes - usage.dataset_bytes - pending_bytes)
    if new_bytes > free_bytes:
        raise Fault(
            FaultCode.QUOTA_DATASETS_EXCEEDED,
            f"The file has {new_bytes} bytes; of the {quota.dataset_bytes} bytes for datasets "
            f"{free_bytes} are free.",
            required_bytes=new_bytes,
            free_bytes=free_bytes,
            quota_bytes=quota.dataset_bytes,
        )


def check_artifact_room(usage: Usage, quota: Quota, *, new_bytes: int) -> None:
    """Refuses an artifact file that does not fit beside what is kept.

    Raises:
        Fault: QUOTA_ARTIFACTS_EXCEEDED with the sizes.
    """
    free_bytes = max(0, quota.artifact_bytes - usage.artifact_bytes)
    if new_bytes > free_bytes:
        raise Fault(
            FaultCode.QUOTA_ARTIFACTS_EXCEEDED,
            f"The file has {new_bytes} bytes; of the {quota.artifact_bytes} bytes for artifacts "
            f"{free_bytes} are free.",
            required_bytes=new_bytes,
            free_bytes=free_bytes,
            quota_bytes=quota.artifact_bytes,
        )
