"""Spans over the real server: one a request, of the caller's trace, with times, without text."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import app.main
from app.errors import SettingsError
from app.record import Record, trace_id_of
from app.settings import Settings
from app.tracing import Spans, configured, tracing_of
from tests.servers import Server, serve

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENTS = f"00-{TRACE}-{PARENT}-01"
HEADERS = {"traceparent": PARENTS, "Authorization": "Bearer k3y", "X-Request-ID": "mine"}
EVENTS = ["queued", "prefill begin", "first token", "decode end"]
TRANSLATE = {"text": "Where is the marmalade?", "source": "en", "target": "de"}


class Traced(SimpleNamespace):
    server: Server
    exporter: InMemorySpanExporter

    def span(self) -> Any:
        """Of the request that was answered last."""
        self.server.wait(lambda: bool(self.exporter.get_finished_spans()), "no span")
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture(scope="module")
def running() -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    spans = Spans(SimpleSpanProcessor(exporter), "1.2.3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.main, "tracing_of", lambda environ, version: spans)
        application = app.main.create_app(Settings(threads=1, slots=2))
    with serve(application) as server:
        yield Traced(server=server, exporter=exporter)


@pytest.fixture
def traced(running: Traced) -> Traced:
    running.exporter.clear()
    return running


def times(span: Any) -> list[int]:
    return [span.start_time, *(event.timestamp for event in span.events), span.end_time]


@pytest.mark.parametrize("path, body", [
    ("/v1/translate", TRANSLATE),
    ("/translate", {"q": "Where is the marmalade?", "source": "en", "target": "de"}),
    ("/v1/generate", {"prompt": "The marmalade", "max_tokens": 5}),
    ("/v1/generate", {"prompt": "The marmalade", "max_tokens": 5, "stream": True}),
    ("/generate_stream", {"inputs": "The marmalade", "parameters": {"max_new_tokens": 5}}),
])  # fmt: skip
def test_a_request_is_one_span_of_the_callers_trace(
    traced: Traced, path: str, body: dict[str, Any]
) -> None:
    assert traced.server.client.post(path, json=body, headers=HEADERS).status_code == 200
    span = traced.span()
    assert span.name == f"POST {path}" and span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert [event.name for event in span.events] == EVENTS
    assert times(span) == sorted(times(span))
    found = span.attributes
    assert found["http.route"] == path and found["http.response.status_code"] == 200
    assert found["gen_ai.usage.input_tokens"] > 0 and found["gen_ai.usage.output_tokens"] > 0
    assert found["gpt2mt.request_id"] == "mine"
    for secret in ("marmalade", "k3y", "127.0.0.1"):
        assert secret not in span.to_json()


def test_without_a_traceparent_a_trace_begins(traced: Traced) -> None:
    traced.server.client.get("/v1/models", headers={"traceparent": "00-nonsense"})
    span = traced.span()
    assert span.parent is None and span.events == () and span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "gpt2-mt"
    assert span.resource.attributes["service.version"] == "1.2.3"


@pytest.mark.parametrize("body, status, code", [
    (TRANSLATE | {"target": "xx"}, 422, "unknown_language"),
    (TRANSLATE | {"timeout_s": 0.001}, 504, "deadline_exceeded"),
])  # fmt: skip
def test_an_error_is_named(traced: Traced, body: dict[str, Any], status: int, code: str) -> None:
    assert traced.server.client.post("/v1/translate", json=body).status_code == status
    span = traced.span()
    assert span.attributes["error.type"] == code
    failed = StatusCode.ERROR if status >= 500 else StatusCode.UNSET
    assert span.status.status_code is failed


def test_probes_and_scrapes_are_not_traced(traced: Traced) -> None:
    for path in ("/health/ready", "/health/live", "/metrics"):
        assert traced.server.client.get(path).status_code == 200
    assert traced.exporter.get_finished_spans() == ()


@pytest.mark.parametrize("environ, on", [
    ({}, False),
    ({"OTEL_SERVICE_NAME": "mine"}, False),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
    ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
])  # fmt: skip
def test_the_environment_switches_it(environ: dict[str, str], on: bool) -> None:
    assert configured(environ) is on


@pytest.mark.parametrize("name, value", [
    ("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
])  # fmt: skip
def test_what_is_not_spoken_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '{value}'") as error:
        configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", name: value})
    assert error.value.param == name


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match="the extra otel"):
        tracing_of({"OTEL_TRACES_EXPORTER": "otlp"}, "0")


def test_off_neither_sdk_nor_exporter_is_imported() -> None:
    code = (
        "import sys; from app.main import create_app; from app.settings import Settings\n"
        "create_app(Settings())\n"
        "off = 'opentelemetry.sdk', 'opentelemetry.exporter'\n"
        "print(*(m for m in sys.modules if m.startswith(off)))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_one_span_a_request_is_exported_by_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: FastAPI's own would tell the address and the query."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        environ["OTEL_SERVICE_NAME"] = "mine"
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with serve(app.main.create_app(Settings(threads=1, slots=2))) as server:
            path = "/v1/translate?key=k3y"
            answer = server.client.post(path, json=TRANSLATE, headers=HEADERS)
            assert answer.status_code == 200
        collector.shutdown()
    ((path, body),) = bodies
    assert not any(secret in body for secret in (b"marmalade", b"k3y", b"127.0.0.1"))
    spans = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    names = {pair.key: pair.value.string_value for pair in spans.resource.attributes}
    (span,) = spans.scope_spans[0].spans
    assert path == "/v1/traces" and names["service.name"] == "mine"
    assert span.name == "POST /v1/translate" and span.trace_id.hex() == TRACE
    assert [event.name for event in span.events] == EVENTS


def test_a_log_knows_the_callers_trace_without_spans() -> None:
    assert trace_id_of(PARENTS) == TRACE
    for wrong in ("", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", PARENTS[:-3]):
        assert trace_id_of(wrong) == ""


def test_a_record_keeps_the_outermost_times_of_its_sequences() -> None:
    record = Record()
    record.submitted(3, 100.0)
    record.submitted(4, 105.0)
    record.ended(100.0, 1.0, 2.0, 3.0)
    record.ended(105.0, 0.5, 0.5, 9.0)
    assert (record.queued, record.prefill) == (100, 101)
    assert (record.first_token, record.decoded) == (103, 115)
    assert record.queue_s == 1.0 and record.prompt_tokens == 7
