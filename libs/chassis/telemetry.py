"""Logs, traces and metrics of a process: JSON lines that carry the run, and OpenTelemetry.

Only the standard OTEL_* variables configure the export of traces and metrics; without them nothing
is exported, but trace ids are still created, logged and passed on.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import structlog
import structlog.typing
from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.util.types import AttributeValue

from chassis import redaction
from lexicon.faults import Fault, FaultCode

INSTRUMENTATION = "tunesmith"
STOP_SECONDS = 3.0
LEVELS = ("debug", "info", "warning", "error")
# Libraries that log every frame; their warnings are enough.
_QUIET = ("asyncio", "httpx", "httpcore", "nats", "grpc", "urllib3", "opentelemetry")
_PROVIDERS: list[TracerProvider | MeterProvider] = []


def start(service: str, environ: Mapping[str, str] | None = None) -> None:
    """Set up logs, traces and metrics; called once, first of all.

    Args:
        service: name in every log line and span, for example `scheduler`.
        environ: read for TUNESMITH_LOG_LEVEL and OTEL_*; default the process environment.
    Raises:
        Fault: CONFIG_INVALID for a log level or an exporter that does not exist.
    """
    variables = os.environ if environ is None else environ
    _start_logs(service, variables.get("TUNESMITH_LOG_LEVEL", "") or "info")
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    resource = Resource.create(
        {"service.name": variables.get("OTEL_SERVICE_NAME") or f"tunesmith-{service}"}
    )
    tracer_provider = TracerProvider(resource=resource)
    span_exporter = _span_exporter(variables)
    if span_exporter is not None:
        tracer_provider.add_span_processor(BatchSpanProcessor(span_exporter))
        _trace_statements()
    trace.set_tracer_provider(tracer_provider)
    metric_exporter = _metric_exporter(variables)
    readers = [] if metric_exporter is None else [PeriodicExportingMetricReader(metric_exporter)]
    meter_provider = MeterProvider(resource=resource, metric_readers=readers)
    metrics.set_meter_provider(meter_provider)
    _PROVIDERS[:] = [tracer_provider, meter_provider]


def stop() -> None:
    """Send what is buffered within a few seconds, so that no collector keeps a process alive."""
    providers = [_PROVIDERS.pop() for _ in range(len(_PROVIDERS))]

    def shut_down() -> None:
        for provider in providers:
            provider.shutdown()

    last = threading.Thread(target=shut_down, daemon=True)
    last.start()
    last.join(STOP_SECONDS)


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module: `log.info("lease granted", node=…)`."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(module=name))


def bind(**values: str | int) -> AbstractContextManager[Any]:
    """Within the block every log line carries these values, for example `run=`."""
    return structlog.contextvars.bound_contextvars(**values)


def traceparent() -> str:
    """W3C trace context of the current span, empty when there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def span(
    name: str, traceparent: str | None = None, **attributes: AttributeValue
) -> Iterator[trace.Span]:
    """A span around a piece of work.

    Args:
        name: what is done, for example `merge`.
        traceparent: W3C trace context to continue; default the current one.
        attributes: facts about the work.
    """
    parent = None
    if traceparent:
        parent = propagate.extract({"traceparent": traceparent}, otel_context.Context())
    with tracer().start_as_current_span(name, context=parent, attributes=attributes) as current:
        yield current


def tracer() -> trace.Tracer:
    """The tracer of the platform's own spans."""
    return trace.get_tracer(INSTRUMENTATION)


def meter() -> metrics.Meter:
    """The meter of the platform's own numbers."""
    return metrics.get_meter(INSTRUMENTATION)


def _start_logs(service: str, level: str) -> None:
    if level.lower() not in LEVELS:
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"TUNESMITH_LOG_LEVEL: '{redaction.redact(level)}' is not usable.",
            remedy=f"Hint: one of {', '.join(LEVELS)}.",
        )
    number = getattr(logging, level.upper())

    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        event.setdefault("service", service)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_trace,
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _redact,
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _add_module],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _add_module(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    event["module"] = event["_record"].name
    return event


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        event["trace_id"] = trace.format_trace_id(current.trace_id)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    return {key: redaction.redact_value(value, name=key) for key, value in event.items()}


def _exporter_name(variables: Mapping[str, str], signal: str) -> str:
    """`otlp`, `console` or `none`: the variable of the signal, else whether an endpoint is set."""
    chosen = variables.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    if chosen:
        if chosen not in ("otlp", "console", "none"):
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"OTEL_{signal}_EXPORTER: '{redaction.redact(chosen)}' is not usable.",
                remedy="Hint: one of otlp, console, none.",
            )
        return chosen
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return "otlp" if any(variables.get(name) for name in endpoints) else "none"


def _uses_grpc(variables: Mapping[str, str], signal: str) -> bool:
    # The specification's default is http/protobuf.
    protocol = variables.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or variables.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    return protocol == "grpc"


def _span_exporter(variables: Mapping[str, str]) -> SpanExporter | None:
    match _exporter_name(variables, "TRACES"):
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter()
    # The exporters are imported late: a process without them starts a fifth of a second earlier.
    if _uses_grpc(variables, "TRACES"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OfGrpc

        return OfGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OfHttp

    return OfHttp()


def _metric_exporter(variables: Mapping[str, str]) -> MetricExporter | None:
    match _exporter_name(variables, "METRICS"):
        case "none":
            return None
        case "console":
            return ConsoleMetricExporter()
    if _uses_grpc(variables, "METRICS"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as OfGrpc,
        )

        return OfGrpc()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OfHttp

    return OfHttp()


def _trace_statements() -> None:
    """A span for every SQL statement; parameters stay out of it."""
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

    AsyncPGInstrumentor(capture_parameters=False).instrument()  # type: ignore[no-untyped-call]
