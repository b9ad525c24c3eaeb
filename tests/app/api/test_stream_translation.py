"""Streaming translation: events in order that add up to the plain answer."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.app.api.test_errors import JSON
from tests.app.api.test_load import decoder, raw_post, slow
from tests.app.api.test_v1 import events

MIXED = [
    "Hello there. I have 3 cats!\n\n7\n\tWhere is {name}?  ",
    "今天天氣很好。孩子們在花園裡玩。",
    "",
    "a\ud800",
    "Wo ist der Bahnhof? Ich möchte zwei Fahrkarten 😀.",
    "12 34",
    "Il fait beau.",
]


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/translate", content=json.dumps(body), headers=JSON)


def told(sent: list[dict[str, Any]]) -> dict[int, str]:
    """What a reader of the events has of each item before its whole translation comes."""
    texts: dict[int, str] = {}
    for event in sent:
        if event["type"] in ("token", "sentence"):
            start = event["offset"] if event["type"] == "token" else event["target"]["start"]
            text = texts.get(event["index"], "")
            assert start <= len(text), "a hole"
            texts[event["index"]] = text[:start] + event["text"]
    return texts


def check(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The stream equals the plain answer."""
    plain = ask(client, **body).json()
    sent = events(ask(client, **body, stream=True))
    whole = [event for event in sent if event["type"] == "translation"]
    assert [event.pop("index") for event in whole] == list(range(len(plain["translations"])))
    assert [{k: v for k, v in event.items() if k != "type"} for event in whole] == (
        plain["translations"]
    )
    assert sent[-1]["type"] == "done" and sent[-1]["usage"] == plain["usage"]
    assert sent[-1]["model"] == plain["model"]
    order = [event.get("index", event.get("sentence")) for event in sent if "sentence" in event]
    assert order == sorted(order)
    texts = [body["text"]] if isinstance(body["text"], str) else body["text"]
    for event in sent:
        if event["type"] == "sentence":
            translation = plain["translations"][event["index"]]["text"]
            start, end = event["target"]["start"], event["target"]["end"]
            assert translation[start:end] == event["text"]
            source = texts[event["index"]][event["source"]["start"] : event["source"]["end"]]
            assert source and source == source.strip()
            event["read"] = source
    return sent


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("target", ["fr", "zh-TW"])
def test_a_stream_adds_up_to_the_plain_answer(
    client: httpx.Client, retry: bool, target: str
) -> None:
    with ThreadPoolExecutor(2) as pool:  # in company
        other = pool.submit(ask, client, text="Hello you. " * 9, target="de", retry=False)
        sent = check(client, text=MIXED, target=target, retry=retry)
        assert other.result().status_code == 200
    whole = [event for event in sent if event["type"] == "translation"]
    assert [told(sent).get(i, "") for i in range(len(MIXED))] == [one["text"] for one in whole]
    assert [bool(one["error"]) for one in whole] == [i == 3 for i in range(len(MIXED))]
    read = [event["read"] for event in sent if event["type"] == "sentence" and not event["index"]]
    assert read == ["Hello there.", "I have 3 cats!", "Where is {name}?"]
    tokens = [event for event in sent if event["type"] == "token"]
    assert len(tokens) > 6


def test_beams_and_markup_have_no_drafts(client: httpx.Client) -> None:
    sent = check(
        client, text="Hello there. Where is it?", source="en", target="de", beam=3,
        alternatives=3, prefix="Heute",
    )  # fmt: skip
    kinds = [event["type"] for event in sent]
    assert kinds == ["sentence", "sentence", "translation", "done"]
    page = "<p>Hello <b>there</b>.\n Where is it?</p>\n<p>7</p><ul><li>You &amp; me"
    sent = check(client, text=[page, "<p>1"], source="en", target="de", format="html")
    assert [event["read"] for event in sent if event["type"] == "sentence"] == [
        "Hello <b>there</b>.\n Where is it?", "You &amp; me",
    ]  # fmt: skip
    assert "token" not in {event["type"] for event in sent}


def test_the_first_token_comes_while_others_are_made(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, slow), retry=False) as server:
        body = {"text": "Hello there. Where is it? " * 3, "source": "en", "target": "de",
                "stream": True}  # fmt: skip
        with server.client.stream("POST", "/v1/translate", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            assert (first["type"], first["index"], first["sentence"]) == ("token", 0, 0)
            assert server.engine.stats().active == 6
            rest = list(lines)
        assert rest[-1] == "data: [DONE]" and sum('"sentence","index"' in x for x in rest) == 6


def test_a_client_that_goes_away_frees_its_slots(fake_server: Any, fp32_bundle: Any) -> None:
    with fake_server(decoder(fp32_bundle, slow)) as server:
        body = {"text": ["Hello you. " * 40] * 3, "source": "en", "target": "de", "stream": True}
        connection = raw_post(server.port, "/v1/translate", body)
        server.wait(lambda: server.engine.stats().active >= 3, "nothing was started")
        assert b"200 OK" in connection.recv(1000)
        began = time.monotonic()
        connection.close()
        server.wait_until_idle()
        assert time.monotonic() - began < 2


def test_errors_before_the_first_event_have_their_status(client: httpx.Client) -> None:
    for change, status, param in (
        ({"target": "tlh"}, 422, "target"),
        ({"text": "a\ud800"}, 422, "text"),
        ({"glossary": "none"}, 404, "glossary"),
    ):
        body = {"text": "Hello.", "source": "en", "target": "de", "stream": True, **change}
        response = ask(client, **body)
        assert (response.status_code, response.json()["param"]) == (status, param)


def test_an_error_after_the_first_event_is_an_event(client: httpx.Client) -> None:
    body = {"text": "Hello you. " * 400, "source": "en", "target": "de"}
    response = ask(client, **body, stream=True, timeout_s=0.5)
    last = response.text.strip().split("\n\n")[-1]
    assert response.status_code == 200
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
