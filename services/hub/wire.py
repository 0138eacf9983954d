"""Protobuf and the hub's domain, there and back: pure, total over the enums."""

from datetime import datetime
from typing import Final, assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from corpus.formats import Format
from hub.domain.artifacts import Artifact, ArtifactFile, ArtifactKind
from hub.domain.datasets import Dataset, Stats, Version
from hub.domain.models import Model, ModelFile
from hub.domain.quota import Quota, Usage
from lexicon.faults import Fault, FaultCode
from lexicon.names import DatasetName
from objects.keys import key_of, uri_of
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.model.v1 import model_pb2

_KINDS: Final = {
    artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER: ArtifactKind.LORA_ADAPTER,
    artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE: ArtifactKind.GGUF_BUNDLE,
    artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY: ArtifactKind.MERGE_HISTORY,
}


def timestamp(moment: datetime) -> Timestamp:
    """A time as protobuf."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def format_to_proto(row_format: Format) -> dataset_pb2.Format:
    """The row shape of a dataset."""
    match row_format:
        case Format.MESSAGES:
            return dataset_pb2.FORMAT_MESSAGES
        case Format.CONVERSATIONS:
            return dataset_pb2.FORMAT_CONVERSATIONS
        case Format.INSTRUCTION:
            return dataset_pb2.FORMAT_INSTRUCTION
        case Format.PROMPT_COMPLETION:
            return dataset_pb2.FORMAT_PROMPT_COMPLETION
        case Format.INPUT_OUTPUT:
            return dataset_pb2.FORMAT_INPUT_OUTPUT
        case Format.TEXT:
            return dataset_pb2.FORMAT_TEXT
        case Format.PREFERENCE:
            return dataset_pb2.FORMAT_PREFERENCE
        case Format.KTO:
            return dataset_pb2.FORMAT_KTO
        case _:
            assert_never(row_format)


def dataset_to_proto(dataset: Dataset, *, with_uri: bool) -> dataset_pb2.Dataset:
    """A dataset; its newest version only if it was not deleted."""
    message = dataset_pb2.Dataset(
        name=str(dataset.name),
        display_name=dataset.display_name,
        version_count=dataset.version_count,
        create_time=timestamp(dataset.create_time),
    )
    if dataset.latest is not None:
        message.latest.CopyFrom(version_to_proto(dataset.latest, with_uri=with_uri))
    if dataset.delete_time is not None:
        message.delete_time.FromDatetime(dataset.delete_time)
    return message


def version_to_proto(version: Version, *, with_uri: bool) -> dataset_pb2.DatasetVersion:
    """A version; its URI is for services only."""
    return dataset_pb2.DatasetVersion(
        name=str(version.name),
        version=version.name.number,
        format=format_to_proto(version.format),
        row_count=version.trainable_row_count,
        size_bytes=version.size_bytes,
        sha256=version.sha256,
        file_name=version.file_name,
        create_time=timestamp(version.create_time),
        stats=_stats_to_proto(version.stats),
        uri=uri_of(version.object_key) if with_uri else "",
    )


def model_to_proto(model: Model) -> model_pb2.Model:
    """A base model."""
    message = model_pb2.Model(
        name="" if model.name is None else str(model.name),
        model_id=model.model_id,
        family=model.family,
        verified=model.verified,
        architecture=model.architecture,
        revision=model.revision,
        parameter_count=model.parameter_count,
        context_tokens=model.context_tokens,
        license=model.license,
        gated=model.gated,
        files=[_model_file_to_proto(file) for file in model.files],
    )
    if model.consent is not None:
        message.consent.refund_waived = True
        message.consent.user = model.consent.user
        message.consent.consent_time.FromDatetime(model.consent.consent_time)
    if model.create_time is not None:
        message.create_time.FromDatetime(model.create_time)
    return message


def kind_to_proto(kind: ArtifactKind) -> artifact_pb2.ArtifactKind:
    """The kind of an artifact file."""
    match kind:
        case ArtifactKind.LORA_ADAPTER:
            return artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
        case ArtifactKind.GGUF_BUNDLE:
            return artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
        case ArtifactKind.MERGE_HISTORY:
            return artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY
        case _:
            assert_never(kind)


def kind_from_proto(kind: artifact_pb2.ArtifactKind) -> ArtifactKind:
    """The kind of an artifact file.

    Raises:
        Fault: INPUT_FIELD_MISSING when it is not set, INPUT_FIELD_INVALID when it is unknown.
    """
    if kind == artifact_pb2.ARTIFACT_KIND_UNSPECIFIED:
        raise Fault(FaultCode.INPUT_FIELD_MISSING, "kind is required.", field="kind")
    if kind not in _KINDS:
        raise Fault(FaultCode.INPUT_FIELD_INVALID, "kind is not known.", field="kind")
    return _KINDS[kind]


def artifact_to_proto(artifact: Artifact, *, with_uri: bool) -> artifact_pb2.Artifact:
    """A hub entry."""
    return artifact_pb2.Artifact(
        name=str(artifact.name),
        run=str(artifact.run),
        base_model=artifact.base_model,
        files=[artifact_file_to_proto(file, with_uri=with_uri) for file in artifact.files],
        create_time=timestamp(artifact.create_time),
        size_bytes=artifact.size_bytes,
    )


def artifact_file_to_proto(file: ArtifactFile, *, with_uri: bool) -> artifact_pb2.ArtifactFile:
    """A file of a hub entry; its URI is for services only."""
    message = artifact_pb2.ArtifactFile(
        kind=kind_to_proto(file.kind),
        quantization=file.quantization,
        file_name=file.file_name,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        uri=uri_of(file.object_key) if with_uri else "",
        entries=file.entries,
    )
    if file.create_time is not None:
        message.create_time.FromDatetime(file.create_time)
    return message


def artifact_file_from_proto(message: artifact_pb2.ArtifactFile) -> ArtifactFile:
    """A file as a service describes it.

    Raises:
        Fault: INPUT_FIELD_MISSING, INPUT_FIELD_INVALID, STORAGE_KEY_INVALID.
    """
    return ArtifactFile(
        kind=kind_from_proto(message.kind),
        quantization=message.quantization,
        file_name=message.file_name,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        object_key=key_of(message.uri),
        entries=tuple(message.entries),
    )


def usage_to_proto(usage: Usage, quota: Quota) -> artifact_pb2.StorageUsage:
    """The stored bytes of a project with its quota."""
    return artifact_pb2.StorageUsage(
        dataset_bytes=usage.dataset_bytes,
        dataset_quota_bytes=quota.dataset_bytes,
        artifact_bytes=usage.artifact_bytes,
        artifact_quota_bytes=quota.artifact_bytes,
    )


def dataset_name(*, project: str, dataset_id: str) -> DatasetName:
    """The name of a dataset from a project and a user's id.

    Raises:
        Fault: INPUT_NAME_INVALID.
    """
    return DatasetName.parse(f"projects/{project}/datasets/{dataset_id}")


def _stats_to_proto(stats: Stats) -> dataset_pb2.DatasetStats:
    return dataset_pb2.DatasetStats(
        row_count=stats.row_count,
        duplicate_row_count=stats.duplicate_row_count,
        character_count=stats.character_count,
        longest_row_characters=stats.longest_row_characters,
        longest_row_number=stats.longest_row_number,
        multi_turn_row_count=stats.multi_turn_row_count,
    )


def _model_file_to_proto(file: ModelFile) -> model_pb2.ModelFile:
    return model_pb2.ModelFile(
        path=file.path,
        uri=uri_of(file.object_key),
        size_bytes=file.size_bytes,
        sha256=file.sha256,
    )
