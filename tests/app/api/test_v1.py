"""Answers of /v1/*: shapes, headers, streams."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

TARGETS = ["zh", "zh-Hant", "zh-TW", "zh-HK", "de", "fr"]


def post(client: httpx.Client, path: str, **body: Any) -> httpx.Response:
    return client.post(path, json=body)


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_translate_one(client: httpx.Client) -> None:
    response = post(client, "/v1/translate", text="Good morning!", source="en", target="de")
    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["translations", "usage", "timing", "model"]
    (translation,) = body["translations"]
    assert list(translation) == [
        "text", "source", "detected", "finish_reason", "truncated", "alternatives", "quality",
        "error",
    ]  # fmt: skip
    assert list(translation["quality"]) == ["score", "flags", "sentences", "glossary"]
    (sentence,) = translation["quality"]["sentences"]
    assert list(sentence) == ["score", "flags", "lost", "method"]
    assert translation["alternatives"] == []
    assert (translation["source"], translation["detected"]) == ("en", None)
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens"}
    assert set(body["timing"]) == {"queue_s", "prefill_s", "decode_s"}
    assert body["model"] == "tiny-fp32"
    names = [part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")]
    assert names == ["queue", "prefill", "decode", "total"]


def test_translate_several_with_detection(client: httpx.Client, sentences: list[str]) -> None:
    body = post(client, "/v1/translate", text=sentences, target="en").json()
    sources = [t["source"] for t in body["translations"]]
    assert sources == ["en"] * 3 + ["zh"] * 3 + ["de"] * 3 + ["fr"] * 3
    for translation in body["translations"]:
        detected = translation["detected"]
        assert set(detected) == {"language", "confidence", "candidates"}
        assert detected["candidates"][0] == {k: detected[k] for k in ("language", "confidence")}
        assert detected["language"] == translation["source"] and 0 < detected["confidence"] <= 1
    assert [t["text"] for t in body["translations"][:3]] == sentences[:3]


@pytest.mark.parametrize(
    ("source", "target"), [("EN", "De"), ("en-US", "de_DE"), ("en_GB-oed", "DE-de-1996")]
)
def test_codes_in_any_case_and_with_a_region(
    client: httpx.Client, source: str, target: str
) -> None:
    (answer,) = post(client, "/v1/translate", text="Good!", source="en", target="de").json()[
        "translations"
    ]
    body = post(client, "/v1/translate", text="Good!", source=source, target=target).json()
    assert body["translations"] == [answer] and answer["source"] == "en"
    detected = post(client, "/v1/translate", text="Good!", source="AUTO", target=target).json()
    assert detected["translations"][0]["detected"]


def test_translate_by_beam(client: httpx.Client) -> None:
    body = {"text": "Good morning!", "source": "en", "target": "de", "beam": 4, "alternatives": 4}
    (plain,) = post(client, "/v1/translate", **body).json()["translations"]
    found = plain["alternatives"]
    assert found[0]["text"] == plain["text"] and len(found) == 4
    assert [list(one) for one in found] == [["text", "score"]] * 4
    body["prefix"] = "Guten"
    (forced,) = post(client, "/v1/translate", **body).json()["translations"]
    assert all(one["text"].startswith("Guten") for one in forced["alternatives"])
    assert len({one["text"] for one in forced["alternatives"]}) == 4


def test_translate_markup_with_a_glossary(client: httpx.Client) -> None:
    body = {"text": ["<p>Hello {name}, <b>cat</b>!</p>", "<p>7</p>", ""], "source": "en",
            "target": "de", "format": "html", "glossary": {"cat": "Kater"}}  # fmt: skip
    for retry in (False, True):
        answer = post(client, "/v1/translate", **body, retry=retry).json()
        first, number, blank = answer["translations"]
        assert re.findall("<[^>]+>", first["text"]) == ["<p>", "<b>", "</b>", "</p>"]
        quality = first["quality"]
        assert quality["glossary"]["hits"] + quality["glossary"]["misses"] == ["cat"]
        assert ("{name}" in first["text"]) is ("spans" not in quality["flags"]) is (
            quality["sentences"][0]["lost"] == []
        )
        assert (number["text"], blank["text"]) == ("<p>7</p>", "")
        assert number["quality"] == {
            "score": None, "flags": [], "sentences": [], "glossary": {"hits": [], "misses": []}
        }  # fmt: skip
    counted = client.get("/metrics").text
    assert 'gpt2mt_translated_sentences_total{method="' in counted
    assert 'gpt2mt_retried_sentences_total{result="' in counted


@pytest.mark.parametrize("form", ["text", "html", "xml"])
@pytest.mark.parametrize(
    "text",
    ["\x00", "a\x00b", "<", "</", "<b", "&", "<![CDATA[", "مرحبا {x}", "😀" * 300, "{a} " * 200,
     "\U000f0000", "<b>" * 300, "\u202ex", "a" * 3000],
)  # fmt: skip
def test_strange_text_does_not_disturb_its_neighbour(
    client: httpx.Client, form: str, text: str
) -> None:
    body = {"text": [text, "<b>1</b>"], "source": "en", "target": "de", "format": form}
    response = post(client, "/v1/translate", **body, retry=False)
    assert response.status_code == 200, response.text
    assert response.json()["translations"][1]["text"] == "<b>1</b>"


def test_generate(client: httpx.Client) -> None:
    body = post(client, "/v1/generate", prompt=["The", "Das"], max_tokens=6).json()
    assert list(body) == ["generations", "usage", "timing", "model"]
    assert [list(g) for g in body["generations"]] == [["text", "finish_reason", "logprobs"]] * 2
    assert body["usage"]["completion_tokens"] == 12


def test_generate_as_a_stream(client: httpx.Client) -> None:
    body = {"prompt": ["The", "今天"], "max_tokens": 12, "seed": 3}
    response = client.post("/v1/generate", json={**body, "stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    sent = events(response)
    assert all(list(event) == ["index", "text", "finish_reason"] for event in sent)
    whole = client.post("/v1/generate", json=body).json()["generations"]
    for i, generation in enumerate(whole):
        mine = [event for event in sent if event["index"] == i]
        assert "".join(event["text"] for event in mine) == generation["text"]
        assert [event["finish_reason"] for event in mine if event["finish_reason"]] == [
            generation["finish_reason"]
        ]
        assert mine[-1]["finish_reason"]


def test_stop_strings_and_seeds(client: httpx.Client) -> None:
    body = {"prompt": "The", "max_tokens": 16, "temperature": 0.9, "seed": 11}
    whole = client.post("/v1/generate", json=body).json()["generations"][0]
    assert client.post("/v1/generate", json=body).json()["generations"][0] == whole
    stop = whole["text"][5:8]
    for given in (stop, [stop], ["not there at all", stop]):
        cut = client.post("/v1/generate", json={**body, "stop": given}).json()["generations"][0]
        text = whole["text"][: whole["text"].index(stop)]
        assert cut == {"text": text, "finish_reason": "stop", "logprobs": None}


def test_options_of_generate(client: httpx.Client) -> None:
    body = {"prompt": "The", "max_tokens": 8, "logprobs": 3, "logit_bias": {"70": 100.0}}
    (biased,) = post(client, "/v1/generate", **body).json()["generations"]
    assert [token["id"] for token in biased["logprobs"]] == [70] * 8
    assert all(list(t) == ["id", "text", "logprob", "top"] for t in biased["logprobs"])
    assert all(70 not in [top["id"] for top in t["top"]] for t in biased["logprobs"][:1])
    body |= {"logit_bias": {}, "n": 3, "min_p": 0.01, "seed": 4}
    answer = post(client, "/v1/generate", **body).json()
    assert answer["usage"]["completion_tokens"] == 24
    for i, generation in enumerate(answer["generations"]):
        alone = post(client, "/v1/generate", **{**body, "n": 1, "seed": 4 + i}).json()
        assert alone["generations"] == [generation]
        assert alone["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    sent = events(client.post("/v1/generate", json={**body, "stream": True}))
    for i, generation in enumerate(answer["generations"]):
        mine = [event for event in sent if event["index"] == i]
        assert sum((event["logprobs"] for event in mine), []) == generation["logprobs"]


def test_models_and_languages(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny-fp32" and model["object"] == "model"
    assert model["tasks"] == ["generate", "translate"]
    assert ["en", "zh"] in model["pairs"]
    assert model["limits"]["max_characters"] == 20_000
    languages = client.get("/v1/languages").json()["languages"]
    assert languages[0] == {"code": "en", "name": "English", "targets": TARGETS}
    assert [language["code"] for language in languages] == ["en", *TARGETS]
    assert languages[2]["targets"] == ["en", "zh", "de", "fr"]


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "id:7/x.y_z"])
def test_a_sane_request_id_is_echoed(client: httpx.Client, given: str) -> None:
    response = client.get("/v1/models", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", 'x"y', "<script>"])
def test_any_other_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    response = client.get("/v1/models", headers={"X-Request-ID": given})
    assert len(response.headers["X-Request-ID"]) == 32
