"""A scheduler and an object store for one test: they lease what is queued and keep what comes."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import timestamp_pb2

from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc

HEARTBEAT_MILLIS = 100
# Within it a child starts and trains its first steps, on a busy machine too.
REPORT_SECONDS_MAX = 120


class ObjectServer:
    """Files by path over HTTP; GET and PUT, no signatures."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = owner.files.get(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def do_PUT(self) -> None:
                owner.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, path: Path, name: str) -> work_pb2.InputFile:
        """Offer a local file as an input of a task."""
        content = path.read_bytes()
        self.files[f"/in/{name}"] = content
        return work_pb2.InputFile(
            path=name,
            url=f"{self.url}/in/{name}",
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(slots=True, kw_only=True)
class FakeScheduler(work_service_pb2_grpc.WorkServiceServicer):
    """Leases what is queued; keeps every report and the end of every task."""

    objects: ObjectServer
    queue: list[work_pb2.Lease] = field(default_factory=list)
    nodes: list[work_pb2.Node] = field(default_factory=list)
    reports: list[work_service_pb2.TaskReport] = field(default_factory=list)
    completed: list[work_service_pb2.CompleteTaskRequest] = field(default_factory=list)
    failed: list[work_service_pb2.FailTaskRequest] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    inputs: list[work_pb2.InputFile] = field(default_factory=list)
    directive: work_service_pb2.Directive = work_service_pb2.DIRECTIVE_CONTINUE
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _acknowledged: dict[str, int] = field(default_factory=dict)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def RegisterNode(
        self, request: work_service_pb2.RegisterNodeRequest, context: Any
    ) -> work_service_pb2.RegisterNodeResponse:
        self.nodes.append(request.node)
        return work_service_pb2.RegisterNodeResponse(node=request.node)

    async def LeaseTask(
        self, request: work_service_pb2.LeaseTaskRequest, context: Any
    ) -> work_service_pb2.LeaseTaskResponse:
        if self.queue:
            return work_service_pb2.LeaseTaskResponse(lease=self.queue.pop(0))
        await asyncio.sleep(min(request.wait_millis, HEARTBEAT_MILLIS) / 1000)
        return work_service_pb2.LeaseTaskResponse()

    async def HeartbeatTask(
        self, request: work_service_pb2.HeartbeatTaskRequest, context: Any
    ) -> work_service_pb2.HeartbeatTaskResponse:
        await self._keep(request.lease_id, request.reports)
        return work_service_pb2.HeartbeatTaskResponse(
            directive=self.directive,
            expire_time=_soon(),
            acknowledged_report_number=self._acknowledged.get(request.lease_id, 0),
        )

    async def SignInputs(
        self, request: work_service_pb2.SignInputsRequest, context: Any
    ) -> work_service_pb2.SignInputsResponse:
        return work_service_pb2.SignInputsResponse(files=self.inputs)

    async def SignOutputs(
        self, request: work_service_pb2.SignOutputsRequest, context: Any
    ) -> work_service_pb2.SignOutputsResponse:
        if not request.files:
            # As the scheduler does it.
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "files must be 1 or more")
        return work_service_pb2.SignOutputsResponse(
            outputs=[
                work_service_pb2.SignedOutput(
                    path=file.path,
                    uri=f"object://{file.path}",
                    url=f"{self.objects.url}/out/{file.path}",
                )
                for file in request.files
            ]
        )

    async def CompleteTask(
        self, request: work_service_pb2.CompleteTaskRequest, context: Any
    ) -> work_service_pb2.CompleteTaskResponse:
        await self._keep(request.lease_id, request.reports)
        self.completed.append(request)
        self.ended.set()
        return work_service_pb2.CompleteTaskResponse()

    async def FailTask(
        self, request: work_service_pb2.FailTaskRequest, context: Any
    ) -> work_service_pb2.FailTaskResponse:
        await self._keep(request.lease_id, request.reports)
        self.failed.append(request)
        self.ended.set()
        return work_service_pb2.FailTaskResponse()

    async def ReleaseTask(
        self, request: work_service_pb2.ReleaseTaskRequest, context: Any
    ) -> work_service_pb2.ReleaseTaskResponse:
        self.released.append(request.lease_id)
        self.ended.set()
        return work_service_pb2.ReleaseTaskResponse()

    async def _keep(self, lease_id: str, reports: Any) -> None:
        async with self._came:
            for report in reports:
                if report.report_number > self._acknowledged.get(lease_id, 0):
                    self._acknowledged[lease_id] = report.report_number
                    self.reports.append(report)
            self._came.notify_all()

    async def until(self, kind: str, holds: Callable[[list[Any]], object] = bool) -> None:
        """Wait until `holds` is true of the reports of this kind: by default, until there is one.

        Raises:
            TimeoutError: it was never true.
        """
        async with asyncio.timeout(REPORT_SECONDS_MAX), self._came:
            await self._came.wait_for(lambda: bool(holds(self.of_kind(kind))))

    def of_kind(self, kind: str) -> list[Any]:
        """Reports of one kind, in order."""
        return [getattr(r, kind) for r in self.reports if r.WhichOneof("report") == kind]


@asynccontextmanager
async def running(scheduler: FakeScheduler) -> AsyncIterator[str]:
    """The scheduler on a free port; its address."""
    server = grpc.aio.server()
    work_service_pb2_grpc.add_WorkServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _soon() -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.GetCurrentTime()
    stamp.seconds += 15
    return stamp


def lease_of(
    lease_id: str, run: str, train: work_pb2.TrainTask, *, attempt: int = 1
) -> work_pb2.Lease:
    """A lease of a training task."""
    return work_pb2.Lease(
        lease_id=lease_id,
        run=run,
        attempt=attempt,
        fencing_epoch=attempt,
        expire_time=_soon(),
        kind=work_pb2.TASK_KIND_TRAIN,
        train=train,
        heartbeat_millis=HEARTBEAT_MILLIS,
    )
