"""Log lines of a real process and of the formatters: what stands in them, and what never does."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.bundle import Bundle
from app.logs import JsonLines, TextLines
from app.main import create_app
from app.settings import Settings
from app.tasks.translate import Translator
from tests.servers import serve

CODE = "import sys; from gpt2_mt.cli import main; sys.exit(main(['serve', '--port', '0']))"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRETS = {
    "Authorization": "Bearer s3cr3t-bearer",
    "X-API-Key": "s3cr3t-key",
    "X-Forwarded-For": "203.0.113.77",
    "User-Agent": "s3cr3t-agent",
    "Cookie": "s3cr3t-cookie",
}


@pytest.fixture(scope="module", params=["json", "text"])
def lines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[str]]]:
    """All that a server logs, at the lowest level, of requests full of secrets."""
    path = tmp_path_factory.mktemp("logs") / "stderr"
    environ = {**os.environ, "GPT2MT_LOG_FORMAT": request.param, "GPT2MT_LOG_LEVEL": "debug",
               "GPT2MT_SLOTS": "2", "GPT2MT_THREADS": "1"}  # fmt: skip
    with path.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", CODE], stderr=out, env=environ)
    port = None
    end = time.monotonic() + 60
    while not port:
        assert process.poll() is None and time.monotonic() < end, path.read_text()
        port = re.search(r"running on http://[\d.]+:(\d+)", path.read_text())
        time.sleep(0.05)
    try:
        talk(int(port[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    yield request.param, path.read_text().splitlines()


def talk(port: int) -> None:
    trace = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "mine"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=SECRETS, timeout=60) as client:
        post = client.post
        body = {"text": "The s3cr3t-text is here.", "source": "en", "target": "de"}
        assert post("/v1/translate", json=body, headers=trace).status_code == 200
        stream = {"prompt": "s3cr3t-prompt", "max_tokens": 3, "stream": True}
        assert post("/v1/generate", json=stream).status_code == 200
        assert post("/v1/translate", json=body | {"target": "s3cr3t-target"}).status_code == 422
        assert post("/v1/translate", content=b'{"text": "s3cr3t-json').status_code in (400, 415)
        form = {"text": "s3cr3t-form", "target_lang": "DE", "auth_key": "s3cr3t-form-key"}
        assert post("/v2/translate", data=form).status_code == 200
        parts = {"q": (None, "s3cr3t-part"), "source": (None, "en"), "target": (None, "de")}
        assert post("/translate", files=parts).status_code == 200
        assert client.get("/s3cr3t-path?q=s3cr3t-query").status_code == 404
        assert client.request("S3CR3T", "/v1/models").status_code == 400
        assert client.request("PROPFIND", "/v1/models").status_code == 405
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "czNjcjN0LXNvY2tldC1rZQ=="}  # fmt: skip
        client.get("/s3cr3t-socket", headers=upgrade)


def test_no_text_key_or_address_is_logged(lines: tuple[str, list[str]]) -> None:
    kind, found = lines
    whole = "\n".join(line for line in found if "running on http" not in line).lower()
    assert "/v1/translate" in whole
    for secret in ("s3cr3t", "203.0.113.77", "127.0.0.1", "czncj"):
        assert secret not in whole, f"{secret} in the {kind} log"


def test_json_has_a_line_for_each_request(lines: tuple[str, list[str]]) -> None:
    kind, found = lines
    if kind == "text":
        told = [line for line in found if " app.http: POST /v1/translate 200" in line]
        assert len(told) == 1 and told[0].endswith(" mine")
        return
    parsed = [json.loads(line) for line in found]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in parsed)
    requests = [line for line in parsed if line["logger"] == "app.http" and "route" in line]
    assert [(line["method"], line["route"], line["status"]) for line in requests][:3] == [
        ("POST", "/v1/translate", 200),
        ("POST", "/v1/generate", 200),
        ("POST", "/v1/translate", 422),
    ]
    first, stream, refused, *_ = requests
    assert first["request_id"] == "mine" and first["trace_id"] == TRACE
    assert first["level"] == "info" and first["duration_s"] > 0 and first["queue_s"] >= 0
    assert first["prompt_tokens"] > 0 and first["completion_tokens"] > 0 and first["error"] is None
    assert 0 < stream["completion_tokens"] <= 3 and stream["trace_id"] is None
    assert refused["error"] == "unknown_language" and refused["completion_tokens"] == 0
    assert ("GET", "unmatched", 404) in {(r["method"], r["route"], r["status"]) for r in requests}


class Kept(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def raised_by(logger: str, formatter: logging.Formatter) -> str:
    kept, log = Kept(formatter), logging.getLogger(logger)
    log.addHandler(kept)
    try:
        raise ValueError("s3cr3t-message")
    except ValueError:
        log.exception("it failed")
    finally:
        log.removeHandler(kept)
    return kept.lines[0]


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_only_the_engines_errors_are_told_in_full(formatter: logging.Formatter) -> None:
    told = raised_by("app.engine", formatter)
    assert "ValueError: s3cr3t-message" in told and "in raised_by" in told
    for logger in ("app.http", "asyncio", "uvicorn.error"):
        told = raised_by(logger, formatter)
        assert "s3cr3t" not in told and "ValueError" in told and "in raised_by" in told


def leak(self: object, text: object, *rest: object, **options: object) -> Any:
    """A defect that tells the text."""
    raise ValueError(text)


def test_an_error_that_nobody_expected_does_not_show_the_text(
    fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, log = Kept(JsonLines()), logging.getLogger("app.http")
    with serve(create_app(Settings(bundle=fp32_bundle.path, threads=1))) as server:
        monkeypatch.setattr(Translator, "run", leak)
        log.addHandler(kept)
        try:
            answer = server.client.post(
                "/v1/translate",
                json={"text": "s3cr3t", "source": "en", "target": "de"},
                headers={"X-Request-ID": "mine"},
            )
        finally:
            log.removeHandler(kept)
    assert answer.status_code == 500 and "s3cr3t" not in answer.text
    (line,) = [json.loads(line) for line in kept.lines if "stack" in line]
    assert line["request_id"] == "mine" and line["error"] == "ValueError"
    assert any("app/api/v1.py:" in frame for frame in line["stack"])
    assert "s3cr3t" not in "\n".join(kept.lines)
