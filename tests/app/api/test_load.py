"""Load, refusal, deadlines, clients that go away, readiness, metrics."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.fakes import FakeDecoder

GENERATE = {"prompt": "The", "max_tokens": 40}
ENDLESS = 600


class Gate:
    """A hook that holds every run of the model until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, phase: str, calls: int) -> None:
        self.open.wait(20)


def slow(phase: str, calls: int) -> None:
    time.sleep(0.01)


def decoder(bundle: Any, hook: Callable[[str, int], None] | None, **more: Any) -> FakeDecoder:
    made = FakeDecoder(
        capacity=1024, vocabulary=bundle.manifest.model.vocabulary, hook=hook, **more
    )
    made._logits[:, 0] = -100.0  # never the end
    return made


def raw_post(port: int, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent and nothing has been read."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def test_64_parallel_requests_equal_the_same_one_by_one(server: Any, sentences: list[str]) -> None:
    def body(i: int) -> tuple[str, dict[str, Any]]:
        text = sentences[i % 12]
        if i % 3 == 0:
            return "/v1/translate", {"text": text, "target": "fr" if i % 2 else "zh"}
        sampling = {"temperature": 0.9, "top_k": 40, "seed": i} if i % 3 == 1 else {}
        return "/v1/generate", {"prompt": text[:20], "max_tokens": 32, **sampling}

    def ask(i: int) -> Any:
        path, request = body(i)
        response = server.client.post(path, json=request)
        assert response.status_code == 200, response.text
        return response.json().get("translations") or response.json()["generations"]

    alone = [ask(i) for i in range(64)]
    before = batch_sizes(server.client)
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert together == alone
    after = batch_sizes(server.client)
    assert (after[0] - before[0]) / (after[1] - before[1]) > 4


def batch_sizes(client: httpx.Client) -> tuple[float, float]:
    """Sum and count of the rows of decode runs."""
    text = client.get("/metrics").text
    total, count = (
        re.search(rf"^gpt2mt_decode_batch_size_{name} (\S+)", text, re.M)
        for name in ("sum", "count")
    )
    assert total and count
    return float(total[1]), float(count[1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": ["a"] * 3, "max_tokens": ENDLESS}),
        ("/v1/generate", {"prompt": ["a"] * 3, "max_tokens": ENDLESS, "stream": True}),
        ("/v1/generate", {"prompt": ["a"] * 30, "max_tokens": ENDLESS, "stream": True}),
        ("/v1/translate", {"text": ["Hello you. " * 40] * 3, "source": "en", "target": "de"}),
    ],
)
def test_a_client_that_disconnects_frees_its_slots(
    fake_server: Any, fp32_bundle: Any, path: str, body: dict[str, Any]
) -> None:
    with fake_server(decoder(fp32_bundle, slow)) as server:
        connection = raw_post(server.port, path, body)
        server.wait(lambda: server.engine.stats().active >= 3, "nothing was started")
        if body.get("stream"):
            assert b"200 OK" in connection.recv(1000)
        began = time.monotonic()
        connection.close()
        server.wait_until_idle()
        assert time.monotonic() - began < 2  # much less than the rest would take
        line = f'requests_total{{endpoint="{path}",method="POST",status="499"}} 1.0'
        server.wait(lambda: line in server.client.get("/metrics").text, "it is not counted")
        text = server.client.get("/metrics").text
        assert 'gpt2mt_sequences_total{finish_reason="cancelled"}' in text
        assert server.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2}).is_success


def test_a_full_queue_is_503_with_retry_after(fake_server: Any, fp32_bundle: Any) -> None:
    gate = Gate()
    fake = decoder(fp32_bundle, gate, slots=1)
    with fake_server(fake, max_queue=1) as server:
        open_ones = [raw_post(server.port, "/v1/generate", GENERATE)]
        server.wait(lambda: len(fake.calls) == 1, "the first did not start")
        open_ones.append(raw_post(server.port, "/v1/generate", GENERATE))
        server.wait(lambda: server.engine.stats().queued >= 1, "the second does not wait")
        for more in ({}, {"stream": True}):
            response = server.client.post("/v1/generate", json={**GENERATE, **more})
            assert response.status_code == 503
            assert response.headers["Content-Type"] == "application/problem+json"
            assert re.fullmatch(r"[1-9]\d*", response.headers["Retry-After"])
            problem = response.json()
            assert problem["code"] == "queue_full"
            assert problem["retry_after_s"] == int(response.headers["Retry-After"])
        gate.open.set()
        for connection in open_ones:
            assert b"200 OK" in connection.recv(1000)
            connection.close()


def test_a_deadline_is_504_and_frees_the_slot(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, slow, slots=1)) as server:
        long = {"prompt": "a", "max_tokens": ENDLESS, "timeout_s": 0.2}
        response = server.client.post("/v1/generate", json=long)
        assert response.status_code == 504
        assert response.json()["code"] == "deadline_exceeded"
        assert "timeout_s=0.2" in response.json()["detail"]
        server.wait_until_idle()
        body = {"text": "Hello. " * 60, "source": "en", "target": "de", "timeout_s": 0.2}
        assert server.client.post("/v1/translate", json=body).status_code == 504
        server.wait_until_idle()


def test_a_body_that_does_not_come_is_408(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, None), body_timeout_s=0.2) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        head = "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{head}Content-Length: 99\r\n\r\n{{"prompt": '.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
        connection.close()
        assert answer.startswith(b"HTTP/1.1 408") and b"application/problem+json" in answer
        assert b'"code": "request_timeout"' in answer and b"within 0.2 s" in answer
        assert server.client.post("/v1/generate", json=GENERATE).is_success


def test_what_is_cut_off_while_draining_is_told(fake_server: Any, fp32_bundle: Any) -> None:
    gate = Gate()
    fake = decoder(fp32_bundle, gate)
    with ThreadPoolExecutor(1) as pool:
        with fake_server(fake) as server:
            late = pool.submit(server.client.post, "/v1/generate", json=GENERATE)
            server.wait(lambda: len(fake.calls) == 1, "nothing was started")
            server.app.state.gpt2mt.draining = True
            threading.Timer(2.5, gate.open.set).start()  # after the server's own patience
            server.stop()
        assert late.result().status_code == 503
        assert late.result().json()["code"] == "not_ready"


def test_an_error_in_a_stream_comes_in_band(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, slow)) as server:
        body = {"prompt": "a", "max_tokens": ENDLESS, "timeout_s": 0.3, "stream": True}
        headers = {"X-Request-ID": "mine"}
        response = server.client.post("/v1/generate", json=body, headers=headers)
        assert response.status_code == 200
        *chunks, last, rest = response.text.split("\n\n")
        assert rest == "" and len(chunks) > 2 and "[DONE]" not in response.text
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], error["status"], error["request_id"]) == (
            "deadline_exceeded", 504, "mine",
        )  # fmt: skip
        server.wait_until_idle()


def test_tokens_arrive_one_by_one(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, slow)) as server:
        times = []
        body = {"prompt": "a", "max_tokens": 30, "stream": True}
        with server.client.stream("POST", "/v1/generate", json=body) as response:
            for line in response.iter_lines():
                if line:
                    times.append(time.monotonic())
        assert len(times) > 10
        assert times[-1] - times[0] > 0.15


def test_readiness_while_loading_and_draining(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, None)) as server:
        state, get = server.app.state.gpt2mt, server.client.get
        assert get("/health/ready").json() == {"status": "ok"}
        catalog, state.catalog = state.catalog, None
        assert get("/health/ready").status_code == get("/v1/models").status_code == 503
        assert get("/health").status_code == get("/health/live").status_code == 200
        refused = server.client.post("/v1/generate", json=GENERATE)
        assert refused.json()["code"] == "not_ready" and refused.headers["Retry-After"]
        state.catalog, state.draining = catalog, True
        assert get("/health/ready").status_code == 503
        assert get("/health/live").status_code == 200
        state.draining = False
        catalog.stop(drain=False)
        assert get("/health").status_code == get("/health/live").status_code == 503
        assert get("/health/ready").status_code == 503


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_head_answers_like_get_without_a_body(
    fake_server: Any, fp32_bundle: Any, path: str
) -> None:
    with fake_server(decoder(fp32_bundle, None)) as server:
        for status in (200, 503):
            head, get = server.client.head(path), server.client.get(path)
            assert head.status_code == get.status_code == status
            assert head.content == b"" and get.content
            assert head.headers["Content-Type"] == get.headers["Content-Type"]
            server.engine.stop(drain=False)


def test_metrics_have_bounded_labels(client: httpx.Client) -> None:
    client.get("/v1/models")
    client.get("/secret-of-a-user?x=1")
    client.request("PROPFIND", "/v1/models")
    client.post("/v1/translate", content=b"x" * 300_000)
    text = client.get("/metrics").text
    assert "secret" not in text and "PROPFIND" not in text
    for line in (
        'gpt2mt_http_requests_total{endpoint="/v1/models",method="GET",status="200"}',
        'gpt2mt_http_requests_total{endpoint="unmatched",method="GET",status="404"}',
        'gpt2mt_http_requests_total{endpoint="/v1/models",method="other",status="405"}',
        'gpt2mt_http_requests_total{endpoint="/v1/translate",method="POST",status="413"}',
        'gpt2mt_http_request_duration_seconds_bucket{endpoint="/v1/models",le="0.005"}',
        'gpt2mt_model_info{model="tiny-fp32",precision="fp32"} 1.0',
        "gpt2mt_http_requests_in_flight 1.0",
        "gpt2mt_queue_depth 0.0",
        "gpt2mt_slots 32.0",
    ):
        assert line in text, line
    for name in ("queue_time", "time_to_first_token", "inter_token_latency"):
        assert f"gpt2mt_{name}_seconds_count" in text
