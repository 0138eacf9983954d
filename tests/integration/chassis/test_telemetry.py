"""Traces and metrics leave by the standard OTEL_* variables and by nothing else."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
METHOD = "tunesmith.api.event.v1.EventService/ListEvents"


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, list[bytes]] = {}

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        self.server.bodies.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


async def run_traced(variables: dict[str, str]) -> str:
    """Run the process and give what it logged."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.chassis.traced",
        cwd=ROOT,
        env={**kept, **variables},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def spans_of(receiver: Receiver) -> dict[str, list[Span]]:
    """Received spans by name."""
    found: dict[str, list[Span]] = {}
    for body in receiver.bodies.get("/v1/traces", []):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.setdefault(span.name, []).append(span)
    return found


async def test_one_trace_joins_caller_and_server(receiver: Receiver) -> None:
    await run_traced({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    spans = spans_of(receiver)
    (outer,) = spans["outer"]
    ours = [span for span in spans[METHOD] if span.trace_id == outer.trace_id]
    (caller,) = [span for span in ours if span.kind == Span.SPAN_KIND_CLIENT]
    (server,) = [span for span in ours if span.kind == Span.SPAN_KIND_SERVER]
    assert caller.parent_span_id == outer.span_id
    assert server.parent_span_id == caller.span_id
    assert any(attribute.key == "tunesmith.run" for attribute in server.attributes)


def metrics_of(receiver: Receiver) -> dict[str, Metric]:
    """Received metrics by name, the newest of each."""
    return {
        metric.name: metric
        for body in receiver.bodies["/v1/metrics"]
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_calls_are_counted(receiver: Receiver) -> None:
    await run_traced({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    assert "rpc.server.duration" in metrics_of(receiver)


async def test_what_goes_from_a_cache_is_told_and_counted(receiver: Receiver) -> None:
    output = await run_traced({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    (point,) = metrics_of(receiver)["tunesmith.cache.evicted"].sum.data_points
    assert point.as_int == 340
    told = [json.loads(line) for line in output.splitlines()]
    evicted = [line for line in told if line["event"] == "cache_evicted"]
    assert [(line["entry"], line["size_bytes"]) for line in evicted] == [
        ("gguf/old", 300),
        ("gguf/old", 40),
    ]
    assert not [line for line in told if line["level"] == "warning"]


async def test_without_variables_nothing_is_exported_but_logs_carry_the_trace(
    receiver: Receiver,
) -> None:
    output = await run_traced({})
    assert receiver.bodies == {}
    lines = [json.loads(line) for line in output.splitlines()]
    (called,) = [line for line in lines if line["event"] == "called"]
    assert called["service"] == "traced"
    assert len(called["trace_id"]) == 32


async def test_exporters_may_be_chosen_one_by_one(receiver: Receiver) -> None:
    await run_traced({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRICS_EXPORTER": "none"})
    assert "/v1/metrics" not in receiver.bodies
    assert spans_of(receiver)["outer"]
