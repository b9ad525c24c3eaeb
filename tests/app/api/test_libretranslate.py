"""LibreTranslate's API: its own client, its shapes and its errors."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libretranslatepy import LibreTranslateAPI

from tests.app.api.test_errors import JSON, STRANGE, VALUES

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BASE: dict[str, Any] = {"q": "Hello.", "source": "en", "target": "de"}
FIELDS = ["q", "source", "target", "format", "alternatives", "api_key", "other"]


@pytest.fixture
def libre(server: Any) -> LibreTranslateAPI:
    return LibreTranslateAPI(f"http://127.0.0.1:{server.port}", api_key="any")


def own(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/translate", json=body)
    assert answer.status_code == 200, answer.text
    translations: list[dict[str, Any]] = answer.json()["translations"]
    return translations


def refused(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    message: str = body["error"]
    return message


def test_the_client_translates_detects_and_lists(
    libre: LibreTranslateAPI, client: httpx.Client, sentences: list[str]
) -> None:
    for text, target in zip(sentences, ["de", "zh", "fr", "en"] * 3, strict=True):
        (expected,) = own(client, text=text, source="auto", target=target)
        assert libre.translate(text, "auto", target) == expected["text"]
    (expected,) = own(client, text=sentences[0], source="en", target="zh")
    assert libre.translate(sentences[0], "en", "zh-Hans") == expected["text"]
    (expected,) = own(client, text=sentences[0], source="en", target="zh-Hant")
    for code in ("zt", "zh-Hant"):
        assert libre.translate(sentences[0], "en", code) == expected["text"]
    assert libre.translate("今天天气很好。", "zh", "zt") == "今天天氣很好。"
    texts = {"今天天气很好。": "zh-Hans", "今天天氣很好。": "zh-Hant", "Wo ist der Bahnhof?": "de"}
    for text, code in texts.items():
        found = libre.detect(text)
        assert found[0]["language"] == code and 50 < found[0]["confidence"] <= 100
        assert [list(one) for one in found] == [["confidence", "language"]] * len(found)
    languages = libre.languages()
    assert [one["code"] for one in languages] == ["en", "zh-Hans", "zh-Hant", "de", "fr"]
    assert languages[0] == {
        "code": "en", "name": "English", "targets": ["de", "en", "fr", "zh-Hans", "zh-Hant"]
    }  # fmt: skip


def test_the_client_gets_an_error(libre: LibreTranslateAPI) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        libre.translate("Hello.", "en", "zz")
    assert caught.value.code == 400
    assert json.loads(caught.value.read()) == {"error": "zz is not supported"}


def test_markup_is_kept(client: httpx.Client) -> None:
    page = '<p class="a">The <b>cat</b> is here.</p><p translate="no">Rex &amp; Co</p>'
    (expected,) = own(client, text=page, source="en", target="de", format="html")
    answer = client.post("/translate", json={**BASE, "q": page, "format": "html"})
    assert answer.json() == {"translatedText": expected["text"]}
    assert expected["text"].startswith('<p class="a">')
    assert expected["text"].endswith('</p><p translate="no">Rex &amp; Co</p>')


def test_one_text_and_arrays(client: httpx.Client, sentences: list[str]) -> None:
    one = client.post("/translate", json=BASE).json()
    (expected,) = own(client, text="Hello.", source="en", target="de")
    assert one == {"translatedText": expected["text"]}
    several = client.post("/translate", json={**BASE, "q": sentences, "source": "auto"}).json()
    expected_all = own(client, text=sentences, target="de")
    assert list(several) == ["translatedText", "detectedLanguage"]
    assert several["translatedText"] == [t["text"] for t in expected_all]
    codes = [t["source"].replace("zh", "zh-Hans") for t in expected_all]
    assert [found["language"] for found in several["detectedLanguage"]] == codes


def test_alternatives_are_those_of_a_beam(client: httpx.Client) -> None:
    body = {"text": "Hello.", "source": "en", "target": "de", "beam": 4, "alternatives": 4}
    (expected,) = own(client, **body)
    texts = [one["text"] for one in expected["alternatives"]]
    one = client.post("/translate", json={**BASE, "alternatives": 3}).json()
    assert one == {"translatedText": texts[0], "alternatives": texts[1:]}
    several = client.post("/translate", json={**BASE, "q": ["Hello.", "7"], "alternatives": "3"})
    assert several.json()["alternatives"] == [texts[1:], []]


@pytest.mark.parametrize("kind", ["urlencoded", "multipart", "query", "mixed"])
def test_forms(client: httpx.Client, kind: str) -> None:
    text = "Good morning!\r\nHow are you?\r\n"
    expected = own(client, text="Good morning!\nHow are you?", source="en", target="de")
    fields = {**BASE, "q": text, "format": "text", "alternatives": "0"}
    if kind == "urlencoded":
        response = client.post("/translate", data=fields)
    elif kind == "multipart":
        response = client.post("/translate", files={k: (None, v) for k, v in fields.items()})
    elif kind == "query":
        response = client.post("/translate", params=fields)
    else:
        response = client.post("/translate", params={"q": text}, data={**BASE, "q": "no"})
    assert response.json() == {"translatedText": expected[0]["text"]}


def test_of_equal_names_in_a_form_the_first_counts(client: httpx.Client) -> None:
    response = client.post(
        "/translate", content=b"q=Hello.&q=x&source=en&target=de&target=tlh", headers=FORM
    )
    assert response.json() == client.post("/translate", json=BASE).json()


def test_what_needs_no_translation_comes_back(client: httpx.Client) -> None:
    for text in (" ", "😀🇩🇪", ["", " "], "42"):
        assert client.post("/translate", json={**BASE, "q": text}).json()["translatedText"] == text
    same = client.post("/translate", json={**BASE, "target": "en-GB"}).json()
    assert same == {"translatedText": "Hello."}
    found = client.post("/translate", json={**BASE, "q": "😀", "source": "auto"}).json()
    assert found["detectedLanguage"] == {"confidence": 0.0, "language": "en"}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/translate", {"q": None}, "Invalid request: missing q parameter"),
    ("/translate", {"q": ""}, "Invalid request: missing q parameter"),
    ("/translate", {"q": []}, "Invalid request: missing q parameter"),
    ("/translate", {"q": 5}, "q is neither"),
    ("/translate", {"q": {"a": 1}}, "q is neither"),
    ("/translate", {"q": ["a", 5]}, "q[1]"),
    ("/translate", {"q": ["a", None]}, "q[1]"),
    ("/translate", {"q": "a" * 20_001}, "q has more than 20000 characters"),
    ("/translate", {"q": ["a"] * 1025}, "q has 1025 items"),
    ("/translate", {"source": ""}, "Invalid request: missing source parameter"),
    ("/translate", {"source": 5}, "source"),
    ("/translate", {"source": "xx"}, "xx is not supported"),
    ("/translate", {"target": None}, "Invalid request: missing target parameter"),
    ("/translate", {"target": ["de"]}, "target"),
    ("/translate", {"target": "auto"}, "auto is not supported"),
    ("/translate", {"format": "markdown"}, "markdown format is not supported"),
    ("/translate", {"format": 7}, "7 format is not supported"),
    ("/translate", {"alternatives": "many"}, "alternatives parameter is not a number"),
    ("/translate", {"alternatives": [1]}, "alternatives parameter is not a number"),
    ("/translate", {"alternatives": 8}, "alternatives parameter must be <= 7"),
    ("/translate", {"alternatives": 10**400}, "alternatives"),
    ("/detect", {"q": None}, "Invalid request: missing q parameter"),
    ("/detect", {"q": [1]}, "q[0]"),
]


@pytest.mark.parametrize(("path", "change", "message"), WRONG)
def test_errors_have_its_shape_and_name_the_field(
    client: httpx.Client, path: str, change: dict[str, Any], message: str
) -> None:
    assert message in refused(client.post(path, json={**BASE, **change}))


def test_bodies_that_cannot_be_read(client: httpx.Client) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"q": ' + b"1" * 5000 + b"}"):
        refused(client.post("/translate", content=content, headers=JSON))
    for content in (b"[]", b"null", b'"q"'):
        assert "object" in refused(client.post("/translate", content=content, headers=JSON))
    parts = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"--x", b"--x\r\nnothing\r\n--x--", b"\x00" * 10):
        refused(client.post("/translate", content=content, headers=parts))
    refused(client.post("/translate", headers={"Content-Type": "multipart/form-data"}))
    refused(client.post("/translate", content=b"{}", headers={"Content-Encoding": "gzip"}))
    refused(client.post("/translate", content=b"x" * 200_001, headers=FORM), 413)
    refused(client.get("/translate"), 405)


@pytest.mark.parametrize(
    "content", [r'"\ud800"', r'["a", "\udc00\ud800"]', r'["\ud83d", ""]'], ids=range(3)
)
def test_lone_surrogates(client: httpx.Client, content: str) -> None:
    body = '{"q": ' + content + ', "source": "auto", "target": "de"}'
    assert "surrogate" in refused(client.post("/translate", content=body, headers=JSON))
    for name in ("source", "target", "format"):
        body = json.dumps({**BASE, name: "\ud800"})
        assert "not supported" in refused(client.post("/translate", content=body, headers=JSON))


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_gets_an_answer(client: httpx.Client, text: str) -> None:
    for body in ({"json": {**BASE, "q": text}}, {"data": {**BASE, "q": text, "source": "auto"}}):
        response = client.post("/translate", **body)  # type: ignore[arg-type]
        assert response.status_code == 200 or "sentences and lines" in refused(response)
    assert client.post("/detect", json={"q": text}).status_code == 200


@given(change=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_is_answered_below_500(client: httpx.Client, change: dict[str, Any]) -> None:
    content = json.dumps({**BASE, **change})
    for path in ("/translate", "/detect"):
        response = client.post(path, content=content, headers=JSON)
        assert response.status_code == 200 or refused(response)


@given(content=st.binary(max_size=60))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_form_is_answered_below_500(client: httpx.Client, content: bytes) -> None:
    for headers in (FORM, {"Content-Type": "multipart/form-data; boundary=x"}):
        response = client.post("/translate?source=en&target=de", content=content, headers=headers)
        assert response.status_code == 200 or refused(response)


def test_settings_of_the_page(client: httpx.Client) -> None:
    told = client.get("/frontend/settings").json()
    assert told["charLimit"] == 20_000 and told["keyRequired"] is False
    assert told["language"]["source"]["code"] == "auto"
    assert told["language"]["target"] == {"code": "zh-Hans", "name": "Chinese"}
    assert client.get("/health").json() == {"status": "ok"}
