"""What can be done with exports: one more GGUF of an adapter that the hub holds."""

from __future__ import annotations

from tunesmith.api.export.v1 import export_pb2, export_service_pb2
from tunesmith.names import artifact_name, full_name
from tunesmith.operations.steps import PAGE_SIZE, call, pages
from tunesmith.transport import Operation

EXPORT_SERVICE = "/tunesmith.api.export.v1.ExportService"

# Seconds between two looks at an export: often at first, for small models, then seldom.
FIRST_POLL_SECONDS = 0.2
LONGEST_POLL_SECONDS = 5.0
ENDED = frozenset(
    {
        export_pb2.EXPORT_STATE_COMPLETED,
        export_pb2.EXPORT_STATE_FAILED,
        export_pb2.EXPORT_STATE_CANCELLED,
    }
)


def create_export(
    project: str,
    artifact: str,
    *,
    quantization: str,
    replace: bool,
    hub_token: str,
    request_id: str,
) -> Operation[export_pb2.Export]:
    """Queue an export; one of the same type that is under way is the answer."""
    request = export_service_pb2.CreateExportRequest(
        request_id=request_id,
        artifact=artifact_name(project, artifact),
        quantization=quantization,
        replace=replace,
        hub_token=hub_token,
    )
    response = export_service_pb2.CreateExportResponse
    return (yield from call(EXPORT_SERVICE, "CreateExport", request, response)).export


def get_export(project: str, export: str) -> Operation[export_pb2.Export]:
    """One export."""
    request = export_service_pb2.GetExportRequest(name=full_name(project, "exports", export))
    response = export_service_pb2.GetExportResponse
    return (yield from call(EXPORT_SERVICE, "GetExport", request, response)).export


def list_exports(
    project: str, *, artifact: str, limit: int | None
) -> Operation[list[export_pb2.Export]]:
    """Exports, newest first; of one hub entry where it is named."""
    request = export_service_pb2.ListExportsRequest(
        parent=f"projects/{project}",
        page_size=PAGE_SIZE,
        artifact=artifact_name(project, artifact) if artifact else "",
    )
    return (
        yield from pages(
            EXPORT_SERVICE,
            "ListExports",
            request,
            export_service_pb2.ListExportsResponse,
            lambda page: page.exports,
            limit=limit,
        )
    )


def cancel_export(project: str, export: str, *, request_id: str) -> Operation[export_pb2.Export]:
    """End an export that has not ended."""
    request = export_service_pb2.CancelExportRequest(
        request_id=request_id, name=full_name(project, "exports", export)
    )
    response = export_service_pb2.CancelExportResponse
    return (yield from call(EXPORT_SERVICE, "CancelExport", request, response)).export
