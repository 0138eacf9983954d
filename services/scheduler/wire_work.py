"""Protobuf ⇄ domain for the work side: nodes, reports, leases and what a lease carries."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, cast

from chassis import errors
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import DEFAULT_PROMPTS
from scheduler.domain.node import NodeRecord
from scheduler.domain.run import Document, Metrics, Record
from scheduler.domain.signals import (
    ActivityReported,
    CheckpointReported,
    MetricsReported,
    PauseReported,
    Report,
    ReportBody,
    SamplesReported,
    StageReached,
    TrainingBegan,
    WarningReported,
)
from scheduler.domain.tasks import TaskKind
from scheduler.wire import activity_from_proto, clean, parse
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

MAX_REPORTS: Final = 1000
MAX_FILES: Final = 1000
MAX_ENTRIES: Final = 1000
# As many runs as a multi-run may have.
MERGE_COUNT_MAX: Final = 100
SHA256_CHARACTERS: Final = 64
SAMPLE_COUNT: Final = 3
SAMPLE_CHARACTERS_MAX: Final = 16_000
MAX_FLAGS: Final = 16
FLAG_CHARACTERS_MAX: Final = 200

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_PATH_CHARACTERS_MAX: Final = 300
# Enough of a digest to distinguish what one attempt stores under one path.
_DIGEST_CHARACTERS: Final = 16
_QUANTIZATION = re.compile(r"[A-Za-z0-9_]{0,32}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


# Each is fetched before training: one more than the newest is enough for one that is broken.
EARLIER_CHECKPOINTS_MAX = 1


def capabilities_of(node: NodeRecord) -> frozenset[str]:
    """What a node can do, as it reported."""
    return frozenset(parse(work_pb2.Node, node.description).capabilities)


def kind_to_proto(kind: TaskKind) -> work_pb2.TaskKind:
    """The contract's kind of task."""
    return cast(work_pb2.TaskKind, work_pb2.TaskKind.Value(f"TASK_KIND_{kind.name}"))


def kind_from_proto(kind: int) -> TaskKind:
    """Our kind of task.

    Raises:
        Fault: INPUT_FIELD_INVALID for one that is not set or not known.
    """
    try:
        return TaskKind(work_pb2.TaskKind.Name(kind).removeprefix("TASK_KIND_"))
    except ValueError:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID, "node.kind must be TRAIN or EXPORT.", field="node.kind"
        ) from None


def node_to_proto(node: NodeRecord, *, now: datetime, silent: timedelta) -> work_pb2.Node:
    """A node as users see it; LOST after it was silent for so long."""
    proto = parse(work_pb2.Node, node.description)
    if now - node.heartbeat_time > silent:
        proto.state = work_pb2.NODE_STATE_LOST
    elif proto.unfit_reason:
        proto.state = work_pb2.NODE_STATE_DRAINING
    elif node.run:
        proto.state = work_pb2.NODE_STATE_LEASED
    else:
        proto.state = work_pb2.NODE_STATE_READY
    proto.name = node.name
    proto.run = node.run
    proto.heartbeat_time.FromDatetime(node.heartbeat_time)
    proto.register_time.FromDatetime(node.register_time)
    if node.temperature_celsius is not None:
        proto.temperature_celsius = node.temperature_celsius
    return proto


def metrics_from_proto(proto: run_pb2.RunMetrics) -> Metrics:
    """The figures of a step."""
    return Metrics(
        step=max(proto.step, 0),
        total_steps=max(proto.total_steps, 0),
        loss=proto.loss,
        document=proto.SerializeToString(),
    )


def reports_from_proto(
    reports: Sequence[work_service_pb2.TaskReport], *, prefix: str
) -> tuple[Report, ...]:
    """A worker's reports; one of a kind that this version does not know is left out.

    Args:
        prefix: URI under which the lease's files must lie.
    Raises:
        Fault: INPUT_FIELD_INVALID for too many, a number below 1, or a file that is not the
        lease's.
    """
    if len(reports) > MAX_REPORTS:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"reports may hold at most {MAX_REPORTS}.",
            field="reports",
        )
    found = []
    for proto in reports:
        if proto.report_number < 1:
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                "report_number must be 1 or more.",
                field="reports.report_number",
            )
        body = _report_body(proto, prefix=prefix)
        if body is not None:
            age = timedelta(milliseconds=min(max(proto.age_millis, 0), 10**12))
            found.append(Report(number=proto.report_number, age=age, body=body))
    return tuple(found)


def _report_body(proto: work_service_pb2.TaskReport, *, prefix: str) -> ReportBody | None:
    match proto.WhichOneof("report"):
        case "stage":
            stage = errors.stage_from_proto(proto.stage)
            return None if stage is None else StageReached(stage=stage)
        case "training_started":
            return TrainingBegan(from_step=max(proto.training_started.from_step, 0))
        case "metrics":
            return MetricsReported(metrics=metrics_from_proto(proto.metrics))
        case "warning":
            return WarningReported(
                code=clean(proto.warning.code), message=clean(proto.warning.message)
            )
        case "checkpoint":
            files = proto.checkpoint.files
            check_files(files, prefix=prefix)
            storing = timedelta(milliseconds=min(max(proto.checkpoint.storing_millis, 0), 10**12))
            return CheckpointReported(
                step=max(proto.checkpoint.step, 0), files=pack_files(files), storing=storing
            )
        case "clock_paused":
            paused = proto.clock_paused
            return PauseReported(paused=paused.paused, reason=clean(paused.reason))
        case "samples":
            reported = work_service_pb2.TrainResult(
                samples=proto.samples.samples, merges=proto.samples.merges
            )
            return SamplesReported(samples=pack_samples(reported))
        case "activity":
            return ActivityReported(activity=activity_from_proto(proto.activity))
    return None


def output_uri(file: work_pb2.OutputFile, *, prefix: str) -> str:
    """Where an output lies.

    Objects are written once; the digest in the key lets a worker that makes a file again, with
    other bytes, store it beside the first.

    Raises:
        Fault: INPUT_FIELD_INVALID for a path or a digest that is none.
    """
    path = check_path(file.path)
    if not _SHA256.fullmatch(file.sha256) or file.size_bytes < 0:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            "A file needs its size and its sha256 in lower-case hexadecimal.",
            field="files.sha256",
            path=path,
        )
    return f"{prefix}{file.sha256[:_DIGEST_CHARACTERS]}/{path}"


def check_path(path: str) -> str:
    """A relative path of plain segments.

    Raises:
        Fault: INPUT_FIELD_INVALID for any other.
    """
    if len(path) > _PATH_CHARACTERS_MAX or not _PATH.fullmatch(path):
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            "A path must be relative, of letters, digits, dots, hyphens and underscores.",
            field="files.path",
        )
    return path


def check_files(files: Sequence[work_pb2.OutputFile], *, prefix: str) -> None:
    """Checks that files are the lease's own and fully named.

    Raises:
        Fault: INPUT_FIELD_INVALID when one lies elsewhere, has no digest, or they are too many.
    """
    if len(files) > MAX_FILES:
        raise Fault(FaultCode.INPUT_FIELD_INVALID, f"At most {MAX_FILES} files.", field="files")
    for file in files:
        if file.uri != output_uri(file, prefix=prefix):
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                "A file must lie where SignOutputs put it.",
                field="files.uri",
                path=file.path,
            )
        entries_fit = len(file.entries) <= MAX_ENTRIES and all(
            len(entry) <= _PATH_CHARACTERS_MAX for entry in file.entries
        )
        if not entries_fit or not _QUANTIZATION.fullmatch(file.quantization):
            raise Fault(
                FaultCode.INPUT_FIELD_INVALID,
                "A file has a quantisation that is none, or too many or too long entries.",
                field="files.entries",
                path=file.path,
            )


def pack_files(files: Iterable[work_pb2.OutputFile]) -> Document:
    """Files as one document."""
    return work_service_pb2.CheckpointStored(files=files).SerializeToString()


def unpack_files(document: Document) -> Sequence[work_pb2.OutputFile]:
    """The files in a document."""
    return parse(work_service_pb2.CheckpointStored, document).files


def pack_samples(result: work_service_pb2.TrainResult) -> Document:
    """Samples and merges as they stand in their event, which must fit into a message of NATS."""
    samples = [
        run_pb2.Sample(
            prompt=sample.prompt[:SAMPLE_CHARACTERS_MAX],
            completion=sample.completion[:SAMPLE_CHARACTERS_MAX],
            base_completion=sample.base_completion[:SAMPLE_CHARACTERS_MAX],
            flags=[flag[:FLAG_CHARACTERS_MAX] for flag in sample.flags[:MAX_FLAGS]],
            step=max(sample.step, 0),
        )
        for sample in result.samples[:SAMPLE_COUNT]
    ]
    merges = [_merge(given) for given in result.merges[:MERGE_COUNT_MAX]]
    return event_pb2.SamplesRecorded(samples=samples, merges=merges).SerializeToString()


def _merge(given: run_pb2.RunMerge) -> run_pb2.RunMerge:
    """A merge as it was given, without what could make it long."""
    merge = run_pb2.RunMerge()
    merge.CopyFrom(given)
    merge.DiscardUnknownFields()
    merge.sha256 = given.sha256[:SHA256_CHARACTERS]
    return merge


def pack_proofs(result: work_service_pb2.ExportResult) -> Document:
    """The export's proofs as one document."""
    return work_service_pb2.CompleteTaskRequest(export=result).SerializeToString()


def adapter_files(files: Iterable[work_pb2.OutputFile]) -> list[work_pb2.OutputFile]:
    """The files that an export needs: those that are no artifacts themselves."""
    none = artifact_pb2.ARTIFACT_KIND_UNSPECIFIED
    return [file for file in files if file.artifact_kind == none]


def artifact_file(run_name: str, file: work_pb2.OutputFile) -> artifact_pb2.ArtifactFile:
    """A stored output as the hub registers it."""
    run_id = run_name.rpartition("/")[2]
    if file.artifact_kind == artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER:
        name = f"{run_id}-lora.zip"
    elif file.artifact_kind == artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY:
        name = f"{run_id}-merges.zip"
    else:
        name = f"{run_id}-{file.quantization}-gguf.zip"
    return artifact_pb2.ArtifactFile(
        kind=file.artifact_kind,
        quantization=file.quantization,
        file_name=name,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        uri=file.uri,
        entries=file.entries,
    )


def train_inputs(record: Record) -> list[str]:
    """URIs that the training of a run reads."""
    inputs = parse(validation_service_pb2.ValidateRunResponse, record.submission.inputs)
    uris = [file.uri for file in inputs.model.files]
    uris += [dataset.uri for dataset in inputs.datasets]
    if record.run.checkpoint is not None:
        uris += [file.uri for file in unpack_files(record.run.checkpoint.files)]
    for files in _earlier(record):
        uris += [file.uri for file in unpack_files(files)]
    return uris


def train_task(record: Record, *, urls: Mapping[str, str], hub_token: str) -> work_pb2.TrainTask:
    """What a trainer needs, with URLs that need no credential.

    Args:
        hub_token: of the user for the model hub; empty without one.
    """
    inputs = parse(validation_service_pb2.ValidateRunResponse, record.submission.inputs)
    spec = parse(spec_pb2.RunSpec, record.submission.spec)
    snapshot = parse(run_pb2.RunSnapshot, record.submission.snapshot)
    # The datasets of the spec come first; one to validate on may follow.
    trained = inputs.datasets[: len(spec.datasets)]
    task = work_pb2.TrainTask(
        base=base_input(spec, snapshot, inputs, urls=urls, hub_token=hub_token),
        datasets=[_dataset(found, urls) for found in trained],
        training=snapshot.training,
        lora=snapshot.lora,
        sample_prompts=list(spec.sample_prompts) or DEFAULT_PROMPTS,
        earlier_checkpoints=[
            work_pb2.CheckpointInput(files=input_files(unpack_files(files), urls))
            for files in _earlier(record)
        ],
    )
    for found in inputs.datasets:
        if _is_of(found, spec.training.validation.dataset):
            task.validation.CopyFrom(_dataset(found, urls))
    checkpoint = record.run.checkpoint
    if checkpoint is not None:
        task.checkpoint.extend(input_files(unpack_files(checkpoint.files), urls))
        task.checkpoint_step = checkpoint.step
    return task


def files_of(lease: work_pb2.Lease) -> list[work_pb2.InputFile]:
    """Every file that a lease's task reads."""
    train, export = lease.train, lease.export
    validation = [train.validation.file] if train.HasField("validation") else []
    return [
        *train.base.files,
        *(dataset.file for dataset in train.datasets),
        *validation,
        *train.checkpoint,
        *(file for each in train.earlier_checkpoints for file in each.files),
        *export.base.files,
        *export.adapter,
    ]


def base_input(
    spec: spec_pb2.RunSpec,
    snapshot: run_pb2.RunSnapshot,
    inputs: validation_service_pb2.ValidateRunResponse,
    *,
    urls: Mapping[str, str],
    hub_token: str,
) -> work_pb2.BaseModelInput:
    """Where the base model of a run comes from, in the revision that it was submitted with."""
    return work_pb2.BaseModelInput(
        base_model=spec.base_model,
        model_id=snapshot.model_id,
        revision=snapshot.model_revision,
        files=[
            _input(file.path, file.uri, file.size_bytes, file.sha256, urls)
            for file in inputs.model.files
        ],
        hub_token=hub_token,
    )


def _earlier(record: Record) -> Sequence[Document]:
    """The superseded checkpoints that an attempt may fall back to; older ones may be deleted."""
    training = parse(run_pb2.RunSnapshot, record.submission.snapshot).training
    return record.earlier[: min(training.checkpoint_keep_count, EARLIER_CHECKPOINTS_MAX)]


def _is_of(version: dataset_pb2.DatasetVersion, dataset: str) -> bool:
    """Whether a version is the one that a name means, with or without its number."""
    return bool(dataset) and f"{version.name}/".startswith(f"{dataset}/")


def _dataset(version: dataset_pb2.DatasetVersion, urls: Mapping[str, str]) -> work_pb2.DatasetInput:
    # The name that the user gave the file is data only; the path is made of our own words.
    dataset_id, number = version.name.split("/")[3], version.version
    suffix = re.search(r"\.[a-z0-9]{1,8}$", version.file_name.lower())
    path = f"{dataset_id}-{number}{suffix.group() if suffix else ''}"
    return work_pb2.DatasetInput(
        name=version.name,
        format=version.format,
        file=_input(path, version.uri, version.size_bytes, version.sha256, urls),
    )


def input_files(
    files: Iterable[work_pb2.OutputFile], urls: Mapping[str, str]
) -> list[work_pb2.InputFile]:
    """Stored files as a task reads them."""
    return [_input(file.path, file.uri, file.size_bytes, file.sha256, urls) for file in files]


def _input(
    path: str, uri: str, size_bytes: int, sha256: str, urls: Mapping[str, str]
) -> work_pb2.InputFile:
    return work_pb2.InputFile(path=path, url=urls[uri], size_bytes=size_bytes, sha256=sha256)
