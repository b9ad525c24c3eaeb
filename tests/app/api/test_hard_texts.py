"""Texts that are long, strange or wrong get a quick answer, and their neighbours their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.api.test_errors import JSON, problem
from tests.servers import serve


@pytest.fixture(scope="module")
def bundled() -> Iterator[httpx.Client]:
    """The bundled model with the limits that a server has."""
    with serve(create_app(Settings(slots=8, threads=1))) as server:
        yield server.client


def ask(client: httpx.Client, text: Any, **more: Any) -> httpx.Response:
    body = {"text": text, "source": "en", "target": "de", "timeout_s": 60, **more}
    return client.post("/v1/translate", content=json.dumps(body), headers=JSON)


HARD = {
    "word": "a" * 99_000,
    "hash": "x9+/" * 20_000,
    "word in a sentence": "I like " + "b" * 50_000 + " very much.",
    "right to left": "مرحبا بالعالم كيف حالك. " * 2_000,
    "a right to left word": "م" * 99_000,
    "emoji": "😀" * 80_000,
    "emoji apart": "😀👩‍👩‍👧 " * 12_000,
    "nothing that is seen": "\u200b" * 99_000,
    "marks": "\u0301" * 90_000,
}


@pytest.mark.parametrize("source", ["en", "auto"])
@pytest.mark.parametrize("name", HARD)
def test_it_is_answered_soon(bundled: httpx.Client, name: str, source: str) -> None:
    began = time.monotonic()
    response = ask(bundled, HARD[name], source=source)
    assert time.monotonic() - began < 20
    assert response.status_code == 200, response.text[:300]
    (one,) = response.json()["translations"]
    if name == "word in a sentence":
        assert "b" * 50_000 in one["text"] and one["quality"]["sentences"]
    else:
        assert one["text"] == HARD[name]


def test_what_is_too_large_is_refused_soon(bundled: httpx.Client) -> None:
    began = time.monotonic()
    problem(ask(bundled, "a" * 1_000_000), 422, "text")
    problem(ask(bundled, "a" * 1_100_000), 413)
    nested = ask(bundled, "<b>" * 10_000 + "you", format="html")
    assert "500 elements" in problem(nested, 422, "text")["detail"]
    closed = "<div>" * 10_000 + "you" + "</div>" * 10_000
    problem(ask(bundled, closed, format="html"), 422, "text")
    assert time.monotonic() - began < 10


def test_each_item_has_its_own_error(client: httpx.Client) -> None:
    good = ["Hello there.", "Where is it?", "a\x00b"]
    bad = ["a\ud800", "a" * 20_001, "<b>" * 600 + "y", "b\n" * 2049]
    texts = [good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3]]
    found = ask(client, texts, format="html", retry=False).json()["translations"]
    alone = ask(client, good, format="html", retry=False).json()["translations"]
    assert [found[i] for i in (0, 2, 5)] == alone and all(one["error"] is None for one in alone)
    codes = {1: "invalid_field", 3: "too_long", 4: "invalid_field"}
    for i, code in codes.items():
        error = found[i]["error"]
        assert (found[i]["text"], error["code"], error["param"]) == ("", code, f"text[{i}]")
        assert error["detail"].startswith(f"text[{i}]") and found[i]["finish_reason"] == "error"
    plain = ask(client, ["Hello.", bad[3]], retry=False).json()["translations"]
    assert plain[1]["error"]["detail"] == "text[1] has more than 2048 sentences and lines in all"
    assert plain[0]["text"]
    for text in bad[:2]:
        problem(ask(client, text), 422, "text")
        (one,) = ask(client, [text]).json()["translations"]
        assert one["error"]["param"] == "text[0]"
    problem(ask(client, ["a " * 9_000, "b " * 9_000]), 422, "text[1]")  # together
    problem(ask(client, ["b\n" * 1_100] * 2), 422, "text[1]")


def test_candidates_of_each_text(client: httpx.Client) -> None:
    texts = ["Where is the station?", "今天天氣很好", "12"]
    answer = client.post("/v1/detect", json={"text": texts}).json()["detections"]
    assert [one["language"] for one in answer] == ["en", "zh-Hant", "en"]
    for one in answer:
        shares = [found["confidence"] for found in one["candidates"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.001
        assert one["candidates"][0]["language"] == one["language"]
    single = client.post("/v1/detect", json={"text": texts[0]}).json()["detections"]
    assert single == answer[:1]
    detected = ask(client, texts[0], source="auto").json()["translations"][0]["detected"]
    assert detected == answer[0]
    for text in (5, [], "a" * 20_001):
        problem(client.post("/v1/detect", json={"text": text}), 422, "text")
