"""What each answer and /metrics tell: ids and times on streams and errors too, errors by code."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from tests.fakes import FakeDecoder
from tests.servers import Server

STREAM = {"prompt": "The weather", "max_tokens": 5, "stream": True}
TGI = {"inputs": "The weather", "parameters": {"max_new_tokens": 5}}
ANSWERS = [
    ("POST", "/v1/generate", STREAM, 200),
    ("POST", "/v1/completions", STREAM, 200),
    ("POST", "/generate_stream", TGI, 200),
    ("POST", "/v1/translate", {"text": "a", "target": "xx"}, 422),
    ("POST", "/v1/translate", {"text": "x" * 200_001, "target": "de"}, 413),
    ("POST", "/v1/generate", STREAM | {"max_tokens": 0}, 422),
    ("POST", "/translate", {"q": "a", "source": "en", "target": "xx"}, 400),
    ("GET", "/v1/translate", None, 405),
    ("GET", "/nowhere", None, 404),
]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """A sample of /metrics; 0 if it is not there."""
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    sample = re.escape(f"{name}{{{inner}}}" if inner else name)
    found = re.search(rf"^{sample} (\S+)$", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("method, path, body, status", ANSWERS)
def test_id_and_time_stand_on_every_answer(
    client: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    answer = client.request(method, path, json=body, headers={"X-Request-ID": "mine"})
    assert answer.status_code == status, answer.text
    assert answer.headers["X-Request-ID"] == "mine"
    total = re.search(r"\btotal;dur=([\d.]+)$", answer.headers["Server-Timing"])
    assert total and float(total[1]) >= 0


def test_errors_are_counted_by_code(client: httpx.Client) -> None:
    name, labels = "gpt2mt_request_errors_total", {"endpoint": "/v1/translate"}
    before = metric(client, name, code="unknown_language", **labels)
    client.post("/v1/translate", json={"text": "a", "target": "xx"})
    assert metric(client, name, code="unknown_language", **labels) == before + 1
    before = metric(client, name, code="not_found", endpoint="unmatched")
    client.get("/nowhere/s3cr3t")
    assert metric(client, name, code="not_found", endpoint="unmatched") == before + 1


def test_limits_versions_and_the_process_are_told(server: Server, client: httpx.Client) -> None:
    service = server.app.state.gpt2mt.catalog.first
    assert metric(client, "gpt2mt_queue_limit") == 2048
    assert metric(client, "gpt2mt_kv_cache_bytes") == service.cache.bytes
    limit = metric(client, "gpt2mt_kv_cache_tokens_limit")
    assert limit == service.cache.slots * service.limits.context
    assert metric(client, "gpt2mt_ready") == metric(client, "gpt2mt_live") == 1
    text = client.get("/metrics").text
    assert re.search(r'^gpt2mt_build_info\{python="[\d.]+",version="[\d.]+"\} 1.0$', text, re.M)
    assert metric(client, "process_resident_memory_bytes") > 10e6
    assert metric(client, "process_cpu_seconds_total") > 0


def test_tokens_in_the_cache_and_the_engines_life_are_told(
    fake_server: Callable[..., AbstractContextManager[Server]],
) -> None:
    waiting, go = threading.Event(), threading.Event()

    def hook(phase: str, calls: int) -> None:
        if phase == "decode" and calls > 5:
            waiting.set()
            assert go.wait(20)

    with fake_server(FakeDecoder(vocabulary=600, hook=hook, capacity=128)) as server:
        body = {"prompt": "The weather", "max_tokens": 30, "min_tokens": 30}
        asked = threading.Thread(target=lambda: server.client.post("/v1/generate", json=body))
        asked.start()
        assert waiting.wait(20)
        with httpx.Client(base_url=server.client.base_url) as client:
            held = metric(client, "gpt2mt_kv_cache_tokens")
            assert 5 <= held < metric(client, "gpt2mt_kv_cache_tokens_limit") == 8 * 128
            go.set()
            asked.join()
            server.wait_until_idle()
            server.wait(lambda: metric(client, "gpt2mt_kv_cache_tokens") == 0, "tokens are left")
            server.engine.stop(drain=False)
            assert metric(client, "gpt2mt_live") == metric(client, "gpt2mt_ready") == 0
            assert client.get("/health/live").status_code == 503


def test_an_error_within_a_stream_is_counted(
    fake_server: Callable[..., AbstractContextManager[Server]],
) -> None:
    decoder = FakeDecoder(vocabulary=600, poison=lambda history: len(history) > 12)
    with fake_server(decoder) as server:
        body = {"prompt": "The", "max_tokens": 30, "min_tokens": 30, "stream": True}
        answer = server.client.post("/v1/generate", json=body)
        assert answer.status_code == 200 and '"code":"engine_failed"' in answer.text
        labels = {"code": "engine_failed", "endpoint": "/v1/generate"}

        def counted() -> bool:  # once the stream has been closed, after its last byte
            return metric(server.client, "gpt2mt_request_errors_total", **labels) == 1

        server.wait(counted, "the error is not counted")
        assert metric(server.client, "gpt2mt_run_failures_total", phase="decode") > 0
