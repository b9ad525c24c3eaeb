"""Every error is problem+json, names its field and leaks nothing; bad input is never a 5xx."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import EngineFailed

JSON = {"Content-Type": "application/json"}
TRANSLATE = {"text": "Hello.", "source": "en", "target": "de"}
GENERATE = {"prompt": "The", "max_tokens": 2}


def problem(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= set(body)
    assert body["status"] == status and body["param"] == param
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["instance"] == response.request.url.path
    return body


WRONG = [
    ("/v1/translate", {"text": 5}, "text", "invalid_field"),
    ("/v1/generate", {"task": "summary"}, "task", "invalid_field"),
    ("/v1/generate", {"task": None}, "task", "invalid_field"),
    ("/v1/translate", {"text": None}, "text", "invalid_field"),
    ("/v1/translate", {"text": {"a": 1}}, "text", "invalid_field"),
    ("/v1/translate", {"text": ["a", 5]}, "text[1]", "invalid_field"),
    ("/v1/translate", {"text": [["a"]]}, "text[0]", "invalid_field"),
    ("/v1/translate", {"text": ""}, "text", "invalid_field"),
    ("/v1/translate", {"text": []}, "text", "invalid_field"),
    ("/v1/translate", {"text": "a" * 20_001}, "text", "too_long"),
    ("/v1/translate", {"source": 1}, "source", "invalid_field"),
    ("/v1/translate", {"source": "xx"}, "source", "unknown_language"),
    ("/v1/translate", {"source": "eng"}, "source", "unknown_language"),
    ("/v1/translate", {"source": "-"}, "source", "unknown_language"),
    ("/v1/translate", {"target": None}, "target", "invalid_field"),
    ("/v1/translate", {"target": "tlh"}, "target", "unknown_language"),
    ("/v1/translate", {"target": "en"}, "source", "unknown_language"),
    ("/v1/translate", {"targett": "de"}, "targett", "unknown_field"),
    ("/v1/translate", {"timeout_s": "5"}, "timeout_s", "invalid_field"),
    ("/v1/translate", {"timeout_s": 0}, "timeout_s", "invalid_field"),
    ("/v1/translate", {"timeout_s": 601}, "timeout_s", "invalid_field"),
    ("/v1/translate", {"beam": 9}, "beam", "invalid_field"),
    ("/v1/translate", {"beam": 2.0}, "beam", "invalid_field"),
    ("/v1/translate", {"beam": 2, "alternatives": 3}, "alternatives", "invalid_field"),
    ("/v1/translate", {"length_penalty": 5.1}, "length_penalty", "invalid_field"),
    ("/v1/translate", {"prefix": 5}, "prefix", "invalid_field"),
    ("/v1/translate", {"text": ["a"], "prefix": "b"}, "prefix", "invalid_field"),
    ("/v1/translate", {"prefix": "b " * 200}, "prefix", "too_long"),
    ("/v1/generate", {"beam": 2}, "beam", "unknown_field"),
    ("/v1/generate", {"prompt": 1}, "prompt", "invalid_field"),
    ("/v1/generate", {"prompt": ["a", None]}, "prompt[1]", "invalid_field"),
    ("/v1/generate", {"prompt": ""}, "prompt", "invalid_field"),
    ("/v1/generate", {"prompt": ["a", "b " * 900]}, "prompt[1]", "too_long"),
    ("/v1/generate", {"max_tokens": "5"}, "max_tokens", "invalid_field"),
    ("/v1/generate", {"max_tokens": 5.0}, "max_tokens", "invalid_field"),
    ("/v1/generate", {"max_tokens": True}, "max_tokens", "invalid_field"),
    ("/v1/generate", {"max_tokens": 0}, "max_tokens", "invalid_field"),
    ("/v1/generate", {"max_tokens": -1}, "max_tokens", "invalid_field"),
    ("/v1/generate", {"temperature": "hot"}, "temperature", "invalid_field"),
    ("/v1/generate", {"temperature": -0.1}, "temperature", "invalid_field"),
    ("/v1/generate", {"temperature": 5.1}, "temperature", "invalid_field"),
    ("/v1/generate", {"top_k": -1}, "top_k", "invalid_field"),
    ("/v1/generate", {"top_k": 1.5}, "top_k", "invalid_field"),
    ("/v1/generate", {"top_p": 0}, "top_p", "invalid_field"),
    ("/v1/generate", {"top_p": 1.01}, "top_p", "invalid_field"),
    ("/v1/generate", {"repetition_penalty": 0}, "repetition_penalty", "invalid_field"),
    ("/v1/generate", {"repetition_penalty": None}, "repetition_penalty", "invalid_field"),
    ("/v1/generate", {"seed": -1}, "seed", "invalid_field"),
    ("/v1/generate", {"seed": 2**32}, "seed", "invalid_field"),
    ("/v1/generate", {"seed": "7"}, "seed", "invalid_field"),
    ("/v1/generate", {"stop": ""}, "stop", "invalid_field"),
    ("/v1/generate", {"stop": ["a", ""]}, "stop[1]", "invalid_field"),
    ("/v1/generate", {"stop": ["a"] * 17}, "stop", "invalid_field"),
    ("/v1/generate", {"stop": 5}, "stop", "invalid_field"),
    ("/v1/generate", {"stream": "true"}, "stream", "invalid_field"),
    ("/v1/generate", {"n": 0}, "n", "invalid_field"),
    ("/v1/generate", {"n": 100, "prompt": ["a"] * 11}, "n", "invalid_field"),
    ("/v1/generate", {"min_p": 1.1}, "min_p", "invalid_field"),
    ("/v1/generate", {"presence_penalty": 2.1}, "presence_penalty", "invalid_field"),
    ("/v1/generate", {"frequency_penalty": -2.1}, "frequency_penalty", "invalid_field"),
    ("/v1/generate", {"logit_bias": [5]}, "logit_bias", "invalid_field"),
    ("/v1/generate", {"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_field"),
    ("/v1/generate", {"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_field"),
    ("/v1/generate", {"logit_bias": {"1000000": 1}}, "logit_bias", "invalid_field"),
    ("/v1/generate", {"min_tokens": 3}, "min_tokens", "invalid_field"),
    ("/v1/generate", {"min_tokens": -1}, "min_tokens", "invalid_field"),
    ("/v1/generate", {"logprobs": 21}, "logprobs", "invalid_field"),
    ("/v1/generate", {"logprobs": True}, "logprobs", "invalid_field"),
    ("/v1/generate", {"best_of": 2}, "best_of", "unknown_field"),
]


@pytest.mark.parametrize(("path", "change", "param", "code"), WRONG)
def test_a_wrong_field_is_named(
    client: httpx.Client, path: str, change: dict[str, Any], param: str, code: str
) -> None:
    base = TRANSLATE if path == "/v1/translate" else GENERATE
    body = problem(client.post(path, json={**base, **change}), 422, param)
    assert body["code"] == code
    assert param in body["detail"] and len(body["detail"]) < 300


def test_all_wrong_fields_are_listed(client: httpx.Client) -> None:
    body = problem(client.post("/v1/translate", json={"text": 1, "extra": 2}), 422, "text")
    assert [(e["param"], e["code"]) for e in body["errors"]] == [
        ("text", "invalid_field"), ("target", "missing_field"), ("extra", "unknown_field"),
    ]  # fmt: skip
    assert all(set(e) == {"param", "code", "detail"} for e in body["errors"])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nope", b'{"text": "a",}', b"\xff\xfe\x00", b'{"a": ' + b"1" * 5000 + b"}",
     b"[" * 50_000, b'{"text": "\xc3"}'],
)  # fmt: skip
def test_bad_json(client: httpx.Client, content: bytes) -> None:
    body = problem(client.post("/v1/translate", content=content, headers=JSON), 400)
    assert body["code"] == "bad_json"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 50_000, "the JSON is nested too deeply"),
        (b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "the JSON is nested too deeply"),
        (b'{"max_tokens": ' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"text": "\xc3"}', "the body is not UTF-8 (byte 10)"),
    ],
    ids=["deep", "deep and closed", "digits", "encoding"],
)
def test_json_that_python_cannot_read(client: httpx.Client, content: bytes, why: str) -> None:
    response = client.post("/v1/generate", content=content, headers=JSON)
    assert problem(response, 400)["detail"] == why


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, deflate"])
def test_content_encoding(client: httpx.Client, coding: str) -> None:
    headers = {**JSON, "Content-Encoding": coding}
    body = json.dumps(TRANSLATE).encode()
    problem(client.post("/v1/translate", content=body, headers=headers), 415, "Content-Encoding")
    headers["Content-Encoding"] = "Identity"
    assert client.post("/v1/translate", content=body, headers=headers).is_success


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_json_that_is_not_an_object(client: httpx.Client, content: bytes) -> None:
    response = client.post("/v1/translate", content=content, headers=JSON)
    assert "object" in problem(response, 422)["detail"] or response.json()["detail"]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_must_be_finite(client: httpx.Client, literal: str) -> None:
    content = '{"prompt": "a", "temperature": ' + literal + "}"
    problem(client.post("/v1/generate", content=content, headers=JSON), 422, "temperature")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_content_type(client: httpx.Client, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/v1/translate", content=json.dumps(TRANSLATE).encode(), headers=headers)
    problem(response, 415, "Content-Type")
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/translate", content=json.dumps(TRANSLATE), headers=charset).is_success


def test_a_body_over_the_limit(client: httpx.Client) -> None:
    problem(client.post("/v1/translate", content=b"x" * 200_001, headers=JSON), 413)


def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            connection.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")  # the last chunk never came


def test_routes_and_methods(client: httpx.Client) -> None:
    problem(client.get("/v1/nothing"), 404)
    problem(client.get("/v1/models/"), 404)
    response = client.put("/v1/translate", json={})
    problem(response, 405)
    assert response.headers["Allow"] == "POST"


STRANGE = [
    "\x00", "a\x00b", "\ufeff", "مرحبا بالعالم", "😀🇩🇪👩\u200d👩\u200d👧" * 20, "\u200b" * 50,
    "\u202egnirts\u202c", "e" + "\u0301" * 300, "<|endoftext|>", "<b>bold</b>", "x" * 1000,
    "\n" * 500, "。" * 500, ". " * 400, "\ufffd\uffff", "𝕳𝖊𝖑𝖑𝖔", "ﷺ" * 10, "{{name}} %s %1$d",
]  # fmt: skip


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_gets_an_answer(client: httpx.Client, text: str) -> None:
    for body in ({"text": text, "target": "de"}, {"text": [text, "Hi."], "source": "zh"}):
        response = client.post("/v1/translate", json={"target": "en", **body})
        assert response.status_code == 200 or problem(response, 422, "text")["code"]
    response = client.post("/v1/generate", json={"prompt": text, "max_tokens": 2})
    assert response.status_code == 200 or problem(response, 422, "prompt")["code"] == "too_long"


@pytest.mark.parametrize(
    ("path", "content", "param"),
    [
        ("/v1/translate", r'{"text": "a\ud800", "target": "de"}', "text"),
        ("/v1/generate", r'{"prompt": ["a", "\udc00\ud800"]}', "prompt[1]"),
        ("/v1/translate", r'{"text": "a", "target": "\ud800"}', "target"),
        ("/v1/generate", r'{"prompt": "\ud83d", "stream": true}', "prompt"),
        ("/v1/generate", r'{"prompt": "a", "stop": ["\ud83d"]}', "stop[0]"),
    ],
)
def test_lone_surrogates(client: httpx.Client, path: str, content: str, param: str) -> None:
    problem(client.post(path, content=content, headers=JSON), 422, param)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = ["text", "source", "target", "timeout_s", "prompt", "max_tokens", "temperature", "top_k",
          "top_p", "repetition_penalty", "seed", "stop", "stream", "other"]  # fmt: skip


@given(
    path=st.sampled_from(["/v1/translate", "/v1/generate"]),
    change=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_is_answered_below_500(
    client: httpx.Client, path: str, change: dict[str, Any]
) -> None:
    base = TRANSLATE if path == "/v1/translate" else GENERATE
    content = json.dumps({**base, **change})  # surrogates as escapes, NaN as it is
    response = client.post(path, content=content, headers=JSON)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 422:
        problem(response, 422, response.json()["param"])


def test_an_unexpected_error_tells_nothing(
    client: httpx.Client, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(requests: Any, begun: bool = False) -> Any:
        raise RuntimeError("secret path /srv/models")

    monkeypatch.setattr(server.engine, "submit", explode)
    for path, base in (("/v1/translate", TRANSLATE), ("/v1/generate", GENERATE)):
        body = problem(client.post(path, json=base), 500)
        assert "secret" not in json.dumps(body) and body["code"] == "internal_error"
    stream = client.post("/v1/generate", json={**GENERATE, "stream": True})
    problem(stream, 500)  # nothing was sent yet

    def fail(requests: Any, begun: bool = False) -> Any:
        raise EngineFailed("node 17 of the graph")

    monkeypatch.setattr(server.engine, "submit", fail)
    body = problem(client.post("/v1/translate", json=TRANSLATE), 500)
    assert body["code"] == "engine_failed" and "graph" not in json.dumps(body)
