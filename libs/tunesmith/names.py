"""Names and ids: short names of users, resource names, and file names."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.run.v1 import spec_pb2


def new_request_id() -> str:
    """A fresh key for a mutation; the same key makes the same call again."""
    return uuid4().hex


def full_name(project: str, collection: str, text: str) -> str:
    """Resource name for what a user typed; a full name stays as it is.

    `habit` means `projects/{project}/datasets/habit`, `habit@2` for its version 2.
    """
    if text.startswith("projects/"):
        return text
    name, _, version = text.partition("@")
    suffix = f"/versions/{version}" if version else ""
    return f"projects/{project}/{collection}/{name}{suffix}"


def artifact_name(project: str, text: str) -> str:
    """A hub entry by its id or name, or by its run: the entry of a run has the run's own id."""
    return full_name(project, "artifacts", text.replace("/runs/", "/artifacts/"))


def with_full_names(project: str, spec: spec_pb2.RunSpec) -> spec_pb2.RunSpec:
    """A copy of the spec with the full names of its datasets."""
    named = spec_pb2.RunSpec()
    named.CopyFrom(spec)
    del named.datasets[:]
    named.datasets.extend(full_name(project, "datasets", dataset) for dataset in spec.datasets)
    return named


def dataset_id_of(path: Path) -> str:
    """Id for a dataset that is named by its file: lower-case letters, digits and hyphens."""
    text = re.sub(r"[^a-z0-9]+", "-", path.name.partition(".")[0].lower()).strip("-")
    return text[:63].strip("-")


def local_name(file: artifact_pb2.ArtifactFile) -> str:
    """The name under which a file is kept here.

    A name from the wire is data: only its last part is used, and never a hidden file.
    """
    return Path(file.file_name.replace("\\", "/")).name.lstrip(".") or file.sha256
