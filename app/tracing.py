"""One OpenTelemetry span for each request, exported by OTLP over HTTP; the extra `otel`.

Configured by the standard OTEL_ environment variables alone, and off without them: then neither its
SDK nor an exporter is imported. A span continues the caller's W3C `traceparent`. It carries the
route, the status, counts and the times at which its sequences were queued, read and generated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from app.errors import SettingsError
from app.record import Done, Record

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EVENTS = {"queued": "queued", "prefill": "prefill begin", "first_token": "first token",
           "decoded": "decode end"}  # fmt: skip
_PROBES = ("/health", "/metrics")
log = logging.getLogger("app.main")


class Tracing(Protocol):
    """What the HTTP layer asks for: a span at a request's begin, closed at its end."""

    def begin(self, record: Record, headers: Mapping[str, str], path: str) -> Span | None: ...

    def end(self, span: Span, record: Record, done: Done) -> None: ...

    def close(self) -> None: ...


def configured(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces; an error names what it asks for in vain."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER is {exporter!r}: otlp and none are known",
            param="OTEL_TRACES_EXPORTER",
        )
    if not (exporter or any(environ.get(name) for name in _ENDPOINTS)):
        return False
    for name in _PROTOCOLS:
        protocol = environ.get(name, "").strip().lower()
        if protocol not in ("", "http/protobuf"):
            raise SettingsError(f"{name} is {protocol!r}: http/protobuf is spoken", param=name)
    return True


def tracing_of(environ: Mapping[str, str], version: str) -> Tracing | None:
    """As the environment asks; None: off."""
    if not configured(environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "OTEL_ variables ask for traces: they need the extra otel, which is not installed",
            param="OTEL_TRACES_EXPORTER",
        ) from None
    log.info("traces are exported by OTLP")
    return Spans(BatchSpanProcessor(OTLPSpanExporter()), version)


class Spans:
    """Implements `Tracing` over OpenTelemetry's SDK."""

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=_resource(version))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("gpt2-mt", version)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failure = Status(StatusCode.ERROR)

    def begin(self, record: Record, headers: Mapping[str, str], path: str) -> Span | None:
        """The record gets the span's trace; probes have none."""
        if path.startswith(_PROBES):
            return None
        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(
            "request", parent, self._kind, start_time=_unix_ns(record.began)
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: Span, record: Record, done: Done) -> None:
        if span.is_recording():
            span.update_name(f"{done.method} {done.route}")
            span.set_attributes(_attributes(record, done))
            for name, event in _EVENTS.items():
                if (at := getattr(record, name)) is not None:
                    span.add_event(event, timestamp=_unix_ns(at))
            if done.status >= 500:
                span.set_status(self._failure)
        span.end(_unix_ns(record.began + done.seconds))

    def close(self) -> None:
        """Export what is left; it waits for it."""
        self._provider.shutdown()


def _resource(version: str) -> Resource:
    """As the environment says; ours is the name where it says none."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create({"service.version": version})
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": "gpt2-mt"}))
    return found


def _attributes(record: Record, done: Done) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": done.method,
        "http.route": done.route,
        "http.response.status_code": done.status,
        "gpt2mt.request_id": record.request_id,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
    }
    if record.queue_s is not None:
        found["gpt2mt.queue_s"] = record.queue_s
    if record.error:
        found["error.type"] = record.error
    return found


def _unix_ns(monotonic: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
