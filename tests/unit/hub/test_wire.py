"""The hub's wire: total over the enums, URIs for services only."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from corpus.formats import Format
from hub import wire
from hub.domain.artifacts import ArtifactFile, ArtifactKind
from lexicon.faults import Fault, FaultCode
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.dataset.v1 import dataset_pb2

FILE = ArtifactFile(
    kind=ArtifactKind.GGUF_BUNDLE,
    quantization="Q4_K_M",
    file_name="run-gguf.zip",
    size_bytes=12,
    sha256="0" * 64,
    object_key="runs/run-1/1/gguf.zip",
    entries=("model.gguf", "README.md"),
    create_time=datetime(2024, 2, 29, tzinfo=UTC),
)


def test_every_format_has_one_of_its_own() -> None:
    messages = [wire.format_to_proto(each) for each in Format]
    assert len(set(messages)) == len(Format) == len(dataset_pb2.Format.values()) - 1


@pytest.mark.parametrize("kind", list(ArtifactKind))
def test_kinds_there_and_back_are_identity(kind: ArtifactKind) -> None:
    assert wire.kind_from_proto(wire.kind_to_proto(kind)) is kind


def test_an_unset_kind_is_missing() -> None:
    with pytest.raises(Fault) as caught:
        wire.kind_from_proto(artifact_pb2.ARTIFACT_KIND_UNSPECIFIED)
    assert caught.value.code is FaultCode.INPUT_FIELD_MISSING


def test_a_file_there_and_back_is_identity() -> None:
    message = wire.artifact_file_to_proto(FILE, with_uri=True)
    assert wire.artifact_file_from_proto(message) == replace(FILE, create_time=None)


def test_users_are_not_told_where_objects_lie() -> None:
    assert wire.artifact_file_to_proto(FILE, with_uri=False).uri == ""
