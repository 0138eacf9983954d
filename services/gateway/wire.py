"""Contracts as routes need them, and rows of the fault table as answers."""

from collections.abc import Iterator

from google.protobuf.descriptor import FileDescriptor

from gateway.domain.routes import Method
from lexicon.faults import FaultCode, FaultRow
from tunesmith.api.artifact.v1 import artifact_service_pb2, object_service_pb2
from tunesmith.api.billing.v1 import billing_service_pb2
from tunesmith.api.dataset.v1 import dataset_service_pb2
from tunesmith.api.event.v1 import event_service_pb2
from tunesmith.api.export.v1 import export_service_pb2
from tunesmith.api.fault.v1 import fault_service_pb2
from tunesmith.api.model.v1 import model_service_pb2
from tunesmith.api.run.v1 import run_service_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from tunesmith.api.work.v1 import work_service_pb2

# Importing the modules registers their contracts, which is also what reflection serves.
CONTRACTS: tuple[FileDescriptor, ...] = (
    artifact_service_pb2.DESCRIPTOR,
    object_service_pb2.DESCRIPTOR,
    billing_service_pb2.DESCRIPTOR,
    dataset_service_pb2.DESCRIPTOR,
    event_service_pb2.DESCRIPTOR,
    export_service_pb2.DESCRIPTOR,
    fault_service_pb2.DESCRIPTOR,
    model_service_pb2.DESCRIPTOR,
    run_service_pb2.DESCRIPTOR,
    validation_service_pb2.DESCRIPTOR,
    work_service_pb2.DESCRIPTOR,
)


def methods() -> Iterator[Method]:
    """Every method of every contract."""
    for contract in CONTRACTS:
        for service in contract.services_by_name.values():
            for method in service.methods:
                yield Method(
                    service=service.full_name,
                    name=method.name,
                    streams_requests=method.client_streaming,
                    streams_responses=method.server_streaming,
                )


def explanation(code: FaultCode, row: FaultRow) -> fault_service_pb2.FaultExplanation:
    """One row of the table in the words of the contract."""
    return fault_service_pb2.FaultExplanation(
        code=code.value,
        category=f"CATEGORY_{row.category.value}",
        owner=f"OWNER_{row.owner.value}",
        retryable=row.retryable,
        refundable=row.refundable,
        grpc_status=row.grpc_status,
        meaning=row.meaning,
        remedy=row.remedy,
    )
