"""The exports of the small platform: one that is made while somebody looks at it."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from chassis.errors import to_status
from lexicon.faults import Fault, FaultCode
from tunesmith.api.export.v1 import export_pb2, export_service_pb2, export_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_pb2

RUN = "projects/p/runs/r1"
ARTIFACT = "projects/p/artifacts/a1"


@dataclass(slots=True, kw_only=True)
class ExportScript:
    """How an export ends after the second look at it, and what was asked for."""

    ends_as: export_pb2.ExportState = export_pb2.EXPORT_STATE_COMPLETED
    look_count: int = 0
    asked: list[export_service_pb2.CreateExportRequest] = field(default_factory=list)


async def refuse(context: Any, fault: Fault) -> None:
    """Answer with a fault."""
    status = to_status(fault)
    await context.abort(
        grpc.StatusCode[fault.row.grpc_status],
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )


class Exports(export_service_pb2_grpc.ExportServiceServicer):
    """Exports that are made while somebody looks: each look moves them on."""

    def __init__(self, script: ExportScript) -> None:
        self.script = script

    async def CreateExport(self, request: Any, context: Any) -> Any:
        self.script.asked.append(request)
        if request.artifact != ARTIFACT:
            fault = Fault(FaultCode.ARTIFACT_NOT_FOUND, artifact=request.artifact)
            await refuse(context, fault)
        return export_service_pb2.CreateExportResponse(export=self._export(looks=0))

    async def GetExport(self, request: Any, context: Any) -> Any:
        self.script.look_count += 1
        return export_service_pb2.GetExportResponse(
            export=self._export(looks=self.script.look_count)
        )

    async def ListExports(self, request: Any, context: Any) -> Any:
        return export_service_pb2.ListExportsResponse(exports=[self._export(looks=9)])

    async def CancelExport(self, request: Any, context: Any) -> Any:
        self.script.ends_as = export_pb2.EXPORT_STATE_CANCELLED
        return export_service_pb2.CancelExportResponse(export=self._export(looks=9))

    def _export(self, *, looks: int) -> export_pb2.Export:
        states = [export_pb2.EXPORT_STATE_QUEUED, export_pb2.EXPORT_STATE_EXPORTING]
        state = states[looks] if looks < len(states) else self.script.ends_as
        export = export_pb2.Export(
            name=f"{ARTIFACT.rpartition('/artifacts/')[0]}/exports/e1",
            artifact=ARTIFACT,
            run=RUN,
            quantization="Q8_0",
            state=state,
            attempt=min(looks, 1),
        )
        if state == export_pb2.EXPORT_STATE_FAILED:
            export.fault.CopyFrom(
                fault_pb2.Fault(
                    code="EXPORT_NOOP_MERGE",
                    category=fault_pb2.CATEGORY_EXPORT,
                    message="The GGUF answers as the base does.",
                )
            )
        return export
