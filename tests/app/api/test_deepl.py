"""DeepL's API: its own client, its shapes and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import deepl
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.api.test_errors import JSON, STRANGE, VALUES

PATH = "/v2/translate"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BASE: dict[str, Any] = {"text": ["Hello."], "source_lang": "EN", "target_lang": "DE"}
FIELDS = ["text", "source_lang", "target_lang", "formality", "tag_handling", "model_type",
          "split_sentences", "glossary_id", "preserve_formatting", "other"]  # fmt: skip


@pytest.fixture
def translator(server: Any) -> Iterator[deepl.DeepLClient]:
    client = deepl.DeepLClient("any", server_url=f"http://127.0.0.1:{server.port}")
    yield client
    client.close()


def own(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/translate", json=body)
    assert answer.status_code == 200, answer.text
    translations: list[dict[str, Any]] = answer.json()["translations"]
    return translations


def refused(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["message"]
    message: str = body["message"]
    return message


def test_the_client_translates(
    translator: deepl.DeepLClient, client: httpx.Client, sentences: list[str]
) -> None:
    for given_code, code in (("EN-GB", "en"), ("EN-US", "en"), ("DE", "de"), ("ZH-HANS", "zh")):
        expected = own(client, text=sentences, target=code)
        results = translator.translate_text(sentences, target_lang=given_code)
        assert [one.text for one in results] == [one["text"] for one in expected]
        sources = [one["source"].upper() for one in expected]
        assert [one.detected_source_lang for one in results] == sources
        assert [one.billed_characters for one in results] == [len(text) for text in sentences]
    (expected_one,) = own(client, text="Guten Morgen!", source="de", target="zh")
    result = translator.translate_text(
        "Guten Morgen!",
        source_lang="DE",
        target_lang="ZH",
        context="greetings",
        split_sentences=deepl.SplitSentences.OFF,
        preserve_formatting=True,
        formality=deepl.Formality.PREFER_LESS,
        model_type=deepl.ModelType.PREFER_QUALITY_OPTIMIZED,
    )
    assert result.text == expected_one["text"] and result.detected_source_lang == "DE"
    assert result.model_type_used == "latency_optimized"


@pytest.mark.parametrize("kind", ["html", "xml"])
def test_the_client_translates_markup(
    translator: deepl.DeepLClient, client: httpx.Client, kind: str
) -> None:
    page = '<p id="1">The <b>cat</b> is here.</p><p translate="no">Rex</p>'
    (expected,) = own(client, text=page, source="en", target="de", format=kind)
    found = translator.translate_text(page, source_lang="EN", target_lang="DE", tag_handling=kind)
    assert found.text == expected["text"] and found.text.startswith('<p id="1">')


def test_the_client_lists_languages_and_usage(translator: deepl.DeepLClient) -> None:
    sources = {one.code: one.name for one in translator.get_source_languages()}
    assert sources == {"EN": "English", "ZH": "Chinese", "DE": "German", "FR": "French"}
    targets = {one.code: one.name for one in translator.get_target_languages()}
    assert targets == {
        "EN-GB": "English (British)", "EN-US": "English (American)",
        "ZH": "Chinese", "ZH-HANT": "Chinese (traditional)", "DE": "German", "FR": "French",
    }  # fmt: skip
    before = translator.get_usage().character
    translator.translate_text(["12345", "ab"], target_lang="DE")
    after = translator.get_usage().character
    assert after.count - before.count == 7 and after.limit == 10**12
    assert not translator.get_usage().any_limit_reached


def test_the_client_raises_its_own_errors(translator: deepl.DeepLClient) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"target_lang": "TLH"}, "'target_lang' not supported"),
        ({"source_lang": "XX"}, "'source_lang' not supported"),
        ({"formality": deepl.Formality.MORE}, "'formality' is not supported"),
        ({"model_type": deepl.ModelType.QUALITY_OPTIMIZED}, "model_type"),
        ({"custom_instructions": ["be brief"]}, "custom_instructions"),
    ]
    for change, message in refusals:
        with pytest.raises(deepl.DeepLException, match=message) as caught:
            translator.translate_text("Hello.", **{"target_lang": "DE", **change})
        assert caught.value.http_status_code == 400


def test_forms(client: httpx.Client) -> None:
    content = "text=Hello.&text=The+dog%0Asleeps.&target_lang=de&target_lang=tlh&source_lang=EN"
    texts = ["Hello.", "The dog\nsleeps."]
    expected = [
        {"detected_source_language": "EN", "text": one["text"]}
        for one in own(client, text=texts, source="en", target="de")
    ]
    response = client.post(PATH, content=content, headers=FORM)
    assert response.json() == {"translations": expected}
    assert response.headers["X-Trace-ID"] == response.headers["X-Request-ID"]
    parts = [("text", (None, text)) for text in texts]
    fields = [("target_lang", (None, "DE")), ("source_lang", (None, "en"))]
    assert client.post(PATH, files=[*parts, *fields]).json() == {"translations": expected}
    assert client.post(PATH, params={**BASE, "text": texts}).json() == {"translations": expected}


def test_what_needs_no_translation_comes_back(client: httpx.Client) -> None:
    for texts, target in ((["", " "], "DE"), (["😀"], "DE"), (["Hello."], "EN-GB")):
        answer = client.post(PATH, json={**BASE, "text": texts, "target_lang": target}).json()
        assert [one["text"] for one in answer["translations"]] == texts
    one = client.post(PATH, json={**BASE, "text": "Hello.", "glossary_id": None, "new": 1}).json()
    assert one == client.post(PATH, json=BASE).json()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"text": None}, "text is missing"),
    ({"text": []}, "text"),
    ({"text": 5}, "text"),
    ({"text": ["a", 5]}, "text[1]"),
    ({"text": ["a", None]}, "text[1]"),
    ({"text": ["a" * 20_001]}, "text has more than 20000 characters"),
    ({"text": ["a"] * 1025}, "text has 1025 items"),
    ({"target_lang": None}, "target_lang is missing"),
    ({"target_lang": 5}, "target_lang"),
    ({"target_lang": ""}, "'target_lang' not supported"),
    ({"target_lang": "auto"}, "'target_lang' not supported"),
    ({"source_lang": "\ud800"}, "'source_lang' not supported"),
    ({"split_sentences": "2"}, "split_sentences"),
    ({"formality": "rude"}, "formality"),
    ({"model_type": "best"}, "model_type"),
    ({"tag_handling": "markdown"}, "tag_handling"),
    ({"preserve_formatting": "perhaps"}, "preserve_formatting"),
    ({"text": ["a\ud800"]}, "text[0]: lone surrogate"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_errors_have_its_shape_and_name_the_field(
    client: httpx.Client, change: dict[str, Any], message: str
) -> None:
    content = json.dumps({**BASE, **change})
    assert message in refused(client.post(PATH, content=content, headers=JSON))


def test_bodies_that_cannot_be_read(client: httpx.Client) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b"[]", b"5"):
        refused(client.post(PATH, content=content, headers=JSON))
    refused(client.post(PATH, content=b"x" * 200_001, headers=FORM), 413)
    refused(client.get(PATH), 405)
    assert "type" in refused(client.get("/v2/languages", params={"type": "all"}))


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_gets_an_answer(client: httpx.Client, text: str) -> None:
    response = client.post(PATH, json={"text": [text, "Hi."], "target_lang": "ZH"})
    assert response.status_code == 200 or "sentences and lines" in refused(response)


@given(change=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_is_answered_below_500(client: httpx.Client, change: dict[str, Any]) -> None:
    response = client.post(PATH, content=json.dumps({**BASE, **change}), headers=JSON)
    unknown = response.status_code == 404 and set(response.json()) == {"message"}
    assert response.status_code == 200 or refused(response) or (unknown and "glossary_id" in change)
