"""A small platform in this process: real gRPC and HTTP servers with state in memory.

The SDK and the CLI are tested across these sockets. It answers what the contracts say and can be
told to fail in the ways that networks fail.
"""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from lexicon.faults import Fault, FaultCode
from tests.support import exports_double
from tests.support.exports_double import ARTIFACT, Exports, ExportScript, refuse
from tunesmith.api.artifact.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from tunesmith.api.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tunesmith.api.export.v1 import export_service_pb2_grpc
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from tunesmith.api.work.v1 import work_pb2, work_service_pb2, work_service_pb2_grpc
from tunesmith.credentials import Credentials

TOKEN = "a-token"
RUN = exports_double.RUN
ZIP = bytes(range(256)) * 20_000


def a_file(
    content: bytes,
    *,
    file_name: str,
    kind: artifact_pb2.ArtifactKind = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
    quantization: str = "",
) -> tuple[artifact_pb2.ArtifactFile, bytes]:
    """A file of the hub entry with its bytes."""
    file = artifact_pb2.ArtifactFile(
        kind=kind,
        quantization=quantization,
        file_name=file_name,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return file, content


@dataclass(slots=True, kw_only=True)
class Script:
    """What the platform does wrong, and what reached it.

    Attributes:
        unavailable_count: so many calls of SubmitRun are answered with UNAVAILABLE.
        lost_answer_count: so many submissions are carried out, and their answer is lost.
        watch_breaks: after which sequence numbers a stream breaks off.
        watch_gaps: sequence numbers that are left out once.
        download_cuts: so many downloads end in the middle.
        upload_refusal: HTTP status and code with which every upload is refused.
        ends_as: state in which the run ends.
        is_stuck: the run stays in the queue until it is cancelled.
        node_state: of the only trainer.
        files: what the run left behind.
        gated_for: the only token with which the base model can be had; empty for any.
    """

    unavailable_count: int = 0
    lost_answer_count: int = 0
    watch_breaks: set[int] = field(default_factory=set)
    watch_gaps: set[int] = field(default_factory=set)
    download_cuts: int = 0
    upload_refusal: tuple[int, str] | None = None
    ends_as: run_pb2.RunState = run_pb2.RUN_STATE_COMPLETED
    is_stuck: bool = False
    node_state: work_pb2.NodeState = work_pb2.NODE_STATE_READY
    files: list[tuple[artifact_pb2.ArtifactFile, bytes]] = field(
        default_factory=lambda: [a_file(ZIP, file_name="../r1-lora.zip")]
    )
    gated_for: str = ""
    hub_tokens: list[str] = field(default_factory=list)
    exports: ExportScript = field(default_factory=ExportScript)
    request_ids: list[str] = field(default_factory=list)
    submitted: dict[str, run_service_pb2.SubmitRunRequest] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    upload_count: int = 0


def money(amount_micros: int) -> billing_pb2.Money:
    """An amount."""
    return billing_pb2.Money(amount_micros=amount_micros, currency_code="CREDIT")


def a_quote() -> billing_pb2.Quote:
    """The price of everything here."""
    return billing_pb2.Quote(
        expected=money(10_000),
        maximum=money(20_000),
        expected_minutes=1,
        maximum_minutes=2,
        rate_per_minute=money(10_000),
        export_rate_per_minute=money(0),
        gpu_tier="cpu",
        refundable=True,
    )


def story_of(script: Script) -> list[event_pb2.Event]:
    """The story of the run: queued, trained in three steps, warned, ended."""
    story = [
        event_pb2.Event(submitted=event_pb2.RunSubmitted(run=run_pb2.Run(name=RUN))),
        event_pb2.Event(
            state=run_pb2.RUN_STATE_WAITING_FOR_GPU, state_changed=event_pb2.RunStateChanged()
        ),
        event_pb2.Event(
            state=run_pb2.RUN_STATE_TRAINING, state_changed=event_pb2.RunStateChanged()
        ),
        *(
            event_pb2.Event(
                state=run_pb2.RUN_STATE_TRAINING,
                stage=fault_pb2.STAGE_TRAINING,
                progressed=event_pb2.RunProgressed(
                    metrics=run_pb2.RunMetrics(
                        step=step,
                        total_steps=3,
                        epoch=1,
                        total_epochs=1,
                        loss=3.0 / step,
                        progress_percent=step * 100 / 3,
                    ),
                    cost=money(0),
                ),
            )
            for step in (1, 2, 3)
        ),
        event_pb2.Event(
            state=run_pb2.RUN_STATE_TRAINING,
            warned=event_pb2.RunWarned(
                warning=run_pb2.RunWarning(code="W", message="2 rows were cut")
            ),
        ),
        event_pb2.Event(
            state=script.ends_as,
            stage=fault_pb2.STAGE_DONE,
            ended=event_pb2.RunEnded(state=script.ends_as),
        ),
    ]
    for sequence, event in enumerate(story, start=1):
        event.sequence, event.run, event.event_id = sequence, RUN, f"e{sequence}"
        event.state = event.state or run_pb2.RUN_STATE_QUEUED
    return story


def _check(context: Any) -> bool:
    return dict(context.invocation_metadata()).get("authorization") == f"Bearer {TOKEN}"


class _Runs(run_service_pb2_grpc.RunServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def _run(self) -> run_pb2.Run:
        run = run_pb2.Run(
            name=RUN,
            state=self.script.ends_as,
            stage=fault_pb2.STAGE_DONE,
            cost=money(0),
            last_sequence=len(story_of(self.script)),
            submit_time=Timestamp(seconds=1_790_000_000),
            end_time=Timestamp(seconds=1_790_000_060),
        )
        run.metrics.step, run.metrics.total_steps, run.metrics.loss = 3, 3, 1.0
        run.spec.base_model = "tunesmith/anvil-3m"
        if self.script.is_stuck:
            run.state, run.stage = run_pb2.RUN_STATE_QUEUED, fault_pb2.STAGE_QUEUED
            run.ClearField("end_time")
        if self.script.ends_as == run_pb2.RUN_STATE_FAILED:
            run.fault.CopyFrom(
                fault_pb2.Fault(
                    code="RUNTIME_GPU_OOM",
                    category=fault_pb2.CATEGORY_OUT_OF_MEMORY,
                    message="CUDA out of memory.",
                    remedy="Lower the batch size.",
                )
            )
        return run

    async def SubmitRun(self, request: Any, context: Any) -> Any:
        self.script.request_ids.append(request.request_id)
        if not _check(context):
            await refuse(context, Fault(FaultCode.ACCESS_TOKEN_INVALID))
        if self.script.unavailable_count > 0:
            self.script.unavailable_count -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if "projects/p/datasets/nothing" in request.spec.datasets:
            await refuse(
                context,
                Fault(
                    FaultCode.DATASET_NOT_FOUND, "There is no dataset nothing.", dataset="nothing"
                ),
            )
        self.script.hub_tokens.append(request.hub_token)
        if self.script.gated_for and request.hub_token != self.script.gated_for:
            text = "Invalid config: Model org/gated is gated: access was not granted (HTTP 401)"
            await refuse(context, Fault(FaultCode.DEP_MODEL_LOAD_FAILED, text, variant="hub_403"))
        response = run_service_pb2.SubmitRunResponse(run=self._run(), quote=a_quote())
        if request.validate_only:
            response.run.name = ""
            return response
        self.script.submitted[request.request_id] = request
        if self.script.lost_answer_count > 0:
            self.script.lost_answer_count -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return response

    async def GetRun(self, request: Any, context: Any) -> Any:
        if request.name != RUN:
            await refuse(
                context, Fault(FaultCode.RUN_NOT_FOUND, f"There is no run {request.name}.")
            )
        return run_service_pb2.GetRunResponse(run=self._run())

    async def ListRuns(self, request: Any, context: Any) -> Any:
        first = int(request.page_token or 0)
        numbers = range(first, min(first + request.page_size, 450))
        return run_service_pb2.ListRunsResponse(
            runs=[
                run_pb2.Run(name=f"projects/p/runs/n{n}", state=run_pb2.RUN_STATE_QUEUED)
                for n in numbers
            ],
            next_page_token=str(numbers.stop) if numbers.stop < 450 else "",
        )

    async def CancelRun(self, request: Any, context: Any) -> Any:
        self.script.cancelled.append(request.name)
        run = self._run()
        run.state = run_pb2.RUN_STATE_CANCELLED
        return run_service_pb2.CancelRunResponse(run=run)

    async def DuplicateRun(self, request: Any, context: Any) -> Any:
        response = run_service_pb2.DuplicateRunResponse()
        response.spec.base_model = "m"
        response.spec.training.epochs = int(request.changes.get("training.epochs", "1"))
        return response

    async def ReportRun(self, request: Any, context: Any) -> Any:
        return run_service_pb2.ReportRunResponse(
            category=fault_pb2.CATEGORY_OUT_OF_MEMORY,
            error_text="CUDA out of memory.",
            run_id="r1",
            base_model="tunesmith/anvil-3m",
            base_model_source="catalog",
            datasets=["projects/p/datasets/habit/versions/1"],
        )


class _Events(event_service_pb2_grpc.EventServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for event in story_of(self.script):
            if event.sequence <= request.after_sequence:
                continue
            if event.sequence in self.script.watch_gaps:
                self.script.watch_gaps.discard(event.sequence)
                continue
            yield event_service_pb2.WatchRunResponse(event=event)
            if event.sequence in self.script.watch_breaks:
                self.script.watch_breaks.discard(event.sequence)
                # A stream that is opened again may begin a little too early.
                await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")


class _Datasets(dataset_service_pb2_grpc.DatasetServiceServicer):
    def __init__(self, script: Script, http_url: str) -> None:
        self.script, self.http_url = script, http_url
        self.announced: dict[str, Any] = {}

    async def CreateUpload(self, request: Any, context: Any) -> Any:
        self.script.request_ids.append(request.request_id)
        self.announced[request.dataset_id] = request
        return dataset_service_pb2.CreateUploadResponse(
            upload_id=request.dataset_id, url=f"{self.http_url}/upload/{request.dataset_id}"
        )

    async def CommitUpload(self, request: Any, context: Any) -> Any:
        body = self.script.uploads.get(request.upload_id, b"")
        announced = self.announced[request.upload_id]
        if hashlib.sha256(body).hexdigest() != announced.sha256:
            await refuse(context, Fault(FaultCode.DATASET_CHECKSUM_MISMATCH))
        name = f"projects/p/datasets/{request.upload_id}"
        version = dataset_pb2.DatasetVersion(
            name=f"{name}/versions/1",
            version=1,
            format=dataset_pb2.FORMAT_MESSAGES,
            row_count=body.count(b"\n"),
            size_bytes=len(body),
        )
        return dataset_service_pb2.CommitUploadResponse(
            dataset=dataset_pb2.Dataset(name=name, latest=version), version=version
        )

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        return dataset_service_pb2.ListDatasetsResponse(
            datasets=[dataset_pb2.Dataset(name="projects/p/datasets/habit")]
        )


class _Artifacts(artifact_service_pb2_grpc.ArtifactServiceServicer):
    def __init__(self, script: Script, http_url: str) -> None:
        self.script, self.http_url = script, http_url

    async def ListArtifacts(self, request: Any, context: Any) -> Any:
        found = request.run in ("", RUN)
        artifact = artifact_pb2.Artifact(
            name=ARTIFACT,
            run=RUN,
            base_model="tunesmith/anvil-3m",
            files=[file for file, _ in self.script.files],
        )
        return artifact_service_pb2.ListArtifactsResponse(artifacts=[artifact] if found else [])

    async def CreateDownload(self, request: Any, context: Any) -> Any:
        wanted = (request.kind, request.quantization)
        number, file = next(
            (number, file)
            for number, (file, _) in enumerate(self.script.files)
            if (file.kind, file.quantization) == wanted
        )
        return artifact_service_pb2.CreateDownloadResponse(
            url=f"{self.http_url}/download/{number}", file=file
        )


class _Billing(billing_service_pb2_grpc.BillingServiceServicer):
    async def GetAccount(self, request: Any, context: Any) -> Any:
        if not _check(context):
            await refuse(context, Fault(FaultCode.ACCESS_TOKEN_INVALID))
        account = billing_pb2.Account(name=request.name, plan="local", available=money(99_500_000))
        return billing_service_pb2.GetAccountResponse(account=account)


class _Nodes(work_service_pb2_grpc.NodeServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def ListNodes(self, request: Any, context: Any) -> Any:
        node = work_pb2.Node(
            name="nodes/trainer-1",
            kind=work_pb2.TASK_KIND_TRAIN,
            tier="cpu",
            state=self.script.node_state,
        )
        return work_service_pb2.ListNodesResponse(nodes=[node])


class _Files(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.script.upload_refusal:
            status, code = self.script.upload_refusal
            self.script.upload_count += 1
            self._head(status, 0, {"x-tunesmith-code": code})
            return
        self.script.uploads[self.path.rpartition("/")[2]] = body
        self._head(200, 0)

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.script.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        number = self.path.rpartition("/")[2]
        body = self.script.files[int(number)][1][start:]
        self._head(206 if asked else 200, len(body))
        if self.script.download_cuts > 0:
            self.script.download_cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def _head(self, status: int, size_bytes: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size_bytes))
        self.end_headers()


@contextmanager
def a_platform(script: Script) -> Iterator[Credentials]:
    """The platform on free ports of this machine; gives the credentials that it takes."""
    files = ThreadingHTTPServer(("127.0.0.1", 0), type("Files", (_Files,), {"script": script}))
    files.daemon_threads = True
    http_url = f"http://127.0.0.1:{files.server_address[1]}"
    serving = threading.Thread(target=files.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    loop = asyncio.new_event_loop()
    turning = threading.Thread(target=loop.run_forever, daemon=True)
    turning.start()
    server, port = asyncio.run_coroutine_threadsafe(_serve(script, http_url), loop).result(10)
    try:
        yield Credentials(address=f"127.0.0.1:{port}", project="p", token=TOKEN, http_url=http_url)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        turning.join(10)
        loop.close()
        files.shutdown()
        files.server_close()


async def _serve(script: Script, http_url: str) -> tuple[aio.Server, int]:
    server = aio.server()
    # Each answers the methods that the tests call; gRPC says UNIMPLEMENTED to the others.
    runs: Any = _Runs(script)  # type: ignore[abstract]  # see above
    events: Any = _Events(script)  # type: ignore[abstract]  # see above
    datasets: Any = _Datasets(script, http_url)  # type: ignore[abstract]  # see above
    artifacts: Any = _Artifacts(script, http_url)  # type: ignore[abstract]  # see above
    exports: Any = Exports(script.exports)
    billing: Any = _Billing()  # type: ignore[abstract]  # see above
    run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
    event_service_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    export_service_pb2_grpc.add_ExportServiceServicer_to_server(exports, server)
    billing_service_pb2_grpc.add_BillingServiceServicer_to_server(billing, server)
    work_service_pb2_grpc.add_NodeServiceServicer_to_server(_Nodes(script), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port
