"""Protobuf ⇄ domain for exports of stored adapters."""

from collections.abc import Mapping, Sequence
from typing import Final, cast

from chassis.outbox import OutboxRow
from lexicon.faults import Fault, FaultCode
from scheduler import events, wire, wire_work
from scheduler.domain.exports import Export, Source
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2

EVENT_TYPE: Final = "export_changed"


def export_to_proto(export: Export) -> export_pb2.Export:
    """An export as users see it."""
    state = export_pb2.ExportState.Value(f"EXPORT_STATE_{export.state.name}")
    proto = export_pb2.Export(
        name=export.name,
        artifact=export.artifact,
        run=export.run,
        base_model=export.base_model,
        quantization=export.quantization,
        state=cast(export_pb2.ExportState, state),
        attempt=export.lease.attempt if export.lease else 0,
        node=export.lease.node if export.lease else "",
        fault=wire.fault_to_proto(export.fault),
        create_time=wire.timestamp(export.create_time),
        update_time=wire.timestamp(export.update_time),
        end_time=wire.timestamp(export.end_time),
    )
    if export.activity is not None:
        proto.activity.CopyFrom(wire.activity_to_proto(export.activity))
    if export.proof:
        proto.proof.ParseFromString(export.proof)
    if export.file:
        proto.file.ParseFromString(export.file)
        proto.file.uri = ""
    return proto


def outgoing(export: Export) -> OutboxRow:
    """The event that reports an export as it is now."""
    project, export_id = export.name.split("/")[1::2]
    event = event_pb2.Event(
        event_id=f"{export_id}-{export.sequence}",
        schema_version=wire.SCHEMA_VERSION,
        run=export.name,
        sequence=export.sequence,
        event_time=wire.timestamp(export.update_time),
        attempt=export.lease.attempt if export.lease else 0,
        traceparent=export.traceparent,
        type=EVENT_TYPE,
        export_changed=event_pb2.ExportChanged(export=export_to_proto(export)),
    )
    return OutboxRow(
        event_id=event.event_id,
        subject=f"{events.SUBJECT_PREFIX}.{project}.{export_id}.{EVENT_TYPE}",
        payload=event.SerializeToString(),
        headers={"traceparent": export.traceparent} if export.traceparent else {},
        run=export.name,
        sequence=export.sequence,
    )


def changed(before: Export, after: Export) -> list[OutboxRow]:
    """The event of a decision about an export; none when it reports nothing."""
    return [outgoing(after)] if after.sequence != before.sequence else []


def base_model_of(source: Source) -> str:
    """Id of the base model as the user gave it."""
    return wire.parse(spec_pb2.RunSpec, source.spec).base_model


def parameter_count_of(source: Source) -> int:
    """Parameters of the base model; 0 where that is not known."""
    inputs = wire.parse(validation_service_pb2.ValidateRunResponse, source.inputs)
    return max(inputs.model.parameter_count, 0)


def is_from_hub(source: Source) -> bool:
    """Whether the exporter fetches the base model from the model hub."""
    inputs = wire.parse(validation_service_pb2.ValidateRunResponse, source.inputs)
    return not inputs.model.files


def inputs_of(source: Source) -> list[str]:
    """URIs that the export of an adapter reads."""
    inputs = wire.parse(validation_service_pb2.ValidateRunResponse, source.inputs)
    adapter = wire_work.unpack_files(source.adapter)
    return [file.uri for file in inputs.model.files] + [file.uri for file in adapter]


def bundle_of(request: work_service_pb2.CompleteTaskRequest, export: Export) -> work_pb2.OutputFile:
    """The one output of an export.

    Raises:
        Fault: INPUT_FIELD_INVALID for more, or another.
    """
    wanted = (artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE, export.quantization)
    found = [(output.artifact_kind, output.quantization) for output in request.outputs]
    if found != [wanted]:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"An export has one output, the GGUF bundle of type {export.quantization}.",
            field="outputs",
        )
    return request.outputs[0]


def proof_of(request: work_service_pb2.CompleteTaskRequest) -> bytes:
    """The proof of the one type, serialized."""
    proofs = request.export.proofs
    return proofs[0].SerializeToString() if proofs else b""


def export_task(
    source: Source, quantizations: Sequence[str], *, urls: Mapping[str, str], hub_token: str
) -> work_pb2.ExportTask:
    """What an exporter needs to make some types of an adapter."""
    snapshot = wire.parse(run_pb2.RunSnapshot, source.snapshot)
    return work_pb2.ExportTask(
        base=wire_work.base_input(
            wire.parse(spec_pb2.RunSpec, source.spec),
            snapshot,
            wire.parse(validation_service_pb2.ValidateRunResponse, source.inputs),
            urls=urls,
            hub_token=hub_token,
        ),
        adapter=wire_work.input_files(wire_work.unpack_files(source.adapter), urls),
        quantizations=quantizations,
        snapshot=snapshot,
        losses=source.losses,
    )
