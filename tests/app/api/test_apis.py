"""What all compatible APIs share: metrics under their routes, errors of the engine, switches."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepl
import httpx
import huggingface_hub
import openai
import pytest
from libretranslatepy import LibreTranslateAPI

from app.errors import DeadlineExceeded, EngineFailed, NotReady, QueueFull, SettingsError
from app.settings import Settings
from tests.fakes import FakeDecoder
from tests.servers import Server

REQUESTS: dict[str, dict[str, Any]] = {
    "/translate": {"q": "Hello.", "source": "en", "target": "de"},
    "/v2/translate": {"text": ["Hello."], "source_lang": "EN", "target_lang": "DE"},
    "/v1/completions": {"prompt": "The", "max_tokens": 4},
    "/generate": {"inputs": "The", "parameters": {"max_new_tokens": 4}},
    "/generate_stream": {"inputs": "The", "parameters": {"max_new_tokens": 4}},
    "/": {"inputs": "The", "parameters": {"max_new_tokens": 4}},
}
SHAPES: dict[str, Callable[[Any], str]] = {
    "/translate": lambda body: body["error"],
    "/v2/translate": lambda body: body["message"],
    "/v1/completions": lambda body: body["error"]["message"],
    "/generate": lambda body: body["error"],
    "/generate_stream": lambda body: body["error"],
    "/": lambda body: body["error"],
}
# of QueueFull, NotReady, EngineFailed, DeadlineExceeded and any exception
STATUSES = {
    "/translate": (429, 503, 500, 504, 500),
    "/v2/translate": (503, 503, 500, 504, 500),
    "/v1/completions": (503, 503, 500, 504, 500),
    "/generate": (429, 503, 424, 504, 500),
    "/generate_stream": (429, 503, 424, 504, 500),
    "/": (429, 503, 424, 504, 500),
}
RAISED = (
    QueueFull("2048 sequences are waiting", retry_after_s=3),
    NotReady("the server is shutting down", retry_after_s=5),
    EngineFailed("node 17 of the graph"),
    DeadlineExceeded("no complete answer within timeout_s=120"),
    RuntimeError("secret path /srv/models"),
)


@pytest.mark.parametrize("path", REQUESTS)
def test_errors_of_the_engine_are_told_in_the_shape_of_the_api(
    client: httpx.Client, server: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for error, status in zip(RAISED, STATUSES[path], strict=True):

        def fail(requests: Any, begun: bool = False, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(server.engine, "submit", fail)
        response = client.post(path, json=REQUESTS[path])
        assert response.status_code == status, response.text
        message = SHAPES[path](response.json())
        assert message and "secret" not in message and "graph" not in message
        waits = isinstance(error, QueueFull | NotReady)
        assert ("Retry-After" in response.headers) == waits


def test_requests_are_counted_by_route(server: Server, client: httpx.Client) -> None:
    for path, body in REQUESTS.items():
        assert client.post(path, json=body).status_code == 200
        line = f'gpt2mt_http_requests_total{{endpoint="{path}",method="POST",status="200"}}'
        # a stream is counted once it has been closed, after its last byte
        server.wait(lambda line=line: line in client.get("/metrics").text, f"{path}: not counted")  # type: ignore[misc]


def test_a_client_that_goes_away_frees_its_slots(fake_server: Callable[..., Any]) -> None:
    gate = threading.Event()

    def wait(phase: str, call: int) -> None:
        if phase == "decode":
            gate.wait(10)

    with fake_server(FakeDecoder(vocabulary=600, capacity=128, hook=wait)) as server:
        for path, body in REQUESTS.items():
            with pytest.raises(httpx.ReadTimeout):
                server.client.post(path, json=body, timeout=2.0)
        gone = 'status="499"'
        server.wait(  # before the gate opens: an answer may be complete before its client is missed
            lambda: server.client.get("/metrics").text.count(gone) == len(REQUESTS), "not counted"
        )
        gate.set()
        server.wait_until_idle()


def test_apis_can_be_switched_off(fake_server: Callable[..., Any]) -> None:
    with fake_server(FakeDecoder(vocabulary=600), apis=()) as server:
        for path, body in REQUESTS.items():
            response = server.client.post(path, json=body)
            assert response.status_code == (405 if path == "/" else 404), path
            assert response.headers["Content-Type"] == "application/problem+json"


def test_the_lines_of_the_readme_work(server: Any) -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(LibreTranslateAPI.*?)```", text, re.S)
    assert block is not None
    names = {"LibreTranslateAPI": LibreTranslateAPI, "deepl": deepl, "openai": openai,
             "huggingface_hub": huggingface_hub}  # fmt: skip
    lines = block[1].replace("localhost:8000", f"127.0.0.1:{server.port}").splitlines()
    assert len(lines) == len(names)
    for line in lines:
        assert eval(line.replace("gpt2-mt-mini", "tiny-fp32"), names)


def test_paths_are_in_the_document(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in set(REQUESTS) - {"/"}:
        operation = paths[path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"], path
        assert set(operation["responses"]) == {"200", "default"}, path
        example = operation["responses"]["default"]["content"]["application/json"]["example"]
        assert "top_p" in SHAPES[path](example), path


def test_the_setting_names_apis() -> None:
    assert Settings.load({}, {}).apis
    assert Settings.load({"apis": "libretranslate"}, {}).apis == ("libretranslate",)
    assert Settings.load({"apis": " "}, {}).apis == ()
    with pytest.raises(SettingsError, match="apis"):
        Settings.load({"apis": "libretranslate,soap"}, {})


def test_the_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2MT_APIS", "libretranslate, libretranslate")
    assert Settings.load().apis == ("libretranslate", "libretranslate")
