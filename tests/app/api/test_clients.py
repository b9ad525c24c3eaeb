"""Published clients of other APIs against one server with keys, two bundles, glossaries, files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import deepl
import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from libretranslatepy import LibreTranslateAPI

from app.access import Key, digest_of
from app.bundle import Bundle
from app.main import create_app
from app.settings import DEFAULT_BUNDLE, Settings
from gpt2_mt.client import Client, Rejected
from tests.app.test_catalog import named
from tests.servers import serve

KEY = "a key of this test"
TEXT = "The cat is in the garden."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clients")
    keys = folder / "keys.txt"
    keys.write_text(f"{Key('tests', digest_of(KEY))}\n")
    second = named(Bundle.open(DEFAULT_BUNDLE), "second", folder / "second")
    settings = Settings(bundles=str(second), api_keys=keys, threads=1, slots=8)
    with serve(create_app(settings)) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def own(url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield client


def translation(own: httpx.Client, text: str = TEXT, **more: object) -> str:
    body = {"text": text, "source": "en", "target": "de", **more}
    found: str = own.post("/v1/translate", json=body).json()["translations"][0]["text"]
    return found


def test_libretranslatepy(url: str, own: httpx.Client) -> None:
    client = LibreTranslateAPI(f"{url}/", api_key=KEY)
    assert client.translate(TEXT, "en", "de") == translation(own)
    assert client.translate(TEXT, "auto", "zt") == translation(own, target="zh-Hant")
    assert client.detect(TEXT)[0]["language"] == "en"
    assert {"en", "de", "fr", "zh-Hans", "zh-Hant"} <= {one["code"] for one in client.languages()}
    for key, status in (("wrong", 403), (None, 400)):
        with pytest.raises(HTTPError) as caught:
            LibreTranslateAPI(f"{url}/", api_key=key).translate(TEXT, "en", "de")
        assert caught.value.code == status


def test_deepl(
    url: str, own: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepl.translator.time.sleep", lambda seconds: None)
    client = deepl.DeepLClient(KEY, server_url=url)
    stored = client.create_glossary("animals", "EN", "DE", {"cat": "Kater"})
    name = stored.glossary_id
    with_terms = {"source_lang": "EN", "target_lang": "DE", "glossary": stored}
    wanted = translation(own, glossary=name)
    assert client.translate_text(TEXT, **with_terms).text == wanted and "Kater" in wanted
    output = io.BytesIO()
    status = client.translate_document(TEXT.encode(), output, filename="a.txt", **with_terms)
    assert status.done and output.getvalue().decode() == wanted
    files = {"file": ("a.txt", TEXT.encode())}
    fields = {"source": "en", "target": "de", "glossary": name}
    assert own.post("/v1/documents", files=files, data=fields).text == wanted
    assert client.translate_text("漢語很難。", target_lang="ZH-HANS").text == "汉语很难。"
    assert client.get_usage().character.count > 0
    with pytest.raises(deepl.DeepLException, match="from 'en' to 'de'"):
        client.translate_document(
            TEXT.encode(), io.BytesIO(), filename="a.txt",
            source_lang="EN", target_lang="FR", glossary=name,
        )  # fmt: skip
    client.delete_glossary(stored)
    with pytest.raises(deepl.DeepLException, match="no glossary"):
        client.translate_text(TEXT, **with_terms)
    with pytest.raises(deepl.AuthorizationException):
        deepl.DeepLClient("wrong", server_url=url).list_glossaries()


def test_openai(url: str, own: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    names = [model.id for model in client.models.list()]
    assert names[1:] == ["second"] and client.models.retrieve("second").id == "second"
    body = {"prompt": "The weather", "max_tokens": 8}
    expected = own.post("/v1/generate", json=body).json()["generations"][0]["text"]
    for name in names:
        made = client.completions.create(
            model=name, prompt="The weather", max_tokens=8, temperature=0
        )
        assert (made.model, made.choices[0].text) == (name, expected)
        chunks = list(client.completions.create(
            model=name, prompt="The weather", max_tokens=8, temperature=0, stream=True
        ))  # fmt: skip
        assert {chunk.model for chunk in chunks} == {name}
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    with pytest.raises(openai.NotFoundError, match="no model 'third'"):
        client.completions.create(model="third", prompt="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()


def test_huggingface_hub(url: str, own: httpx.Client) -> None:
    client = InferenceClient(model=url, token=KEY)
    body = {"prompt": "The weather", "max_tokens": 8}
    expected = own.post("/v1/generate", json=body).json()["generations"][0]["text"]
    asked = {"max_new_tokens": 8, "do_sample": False}
    assert client.text_generation("The weather", **asked) == expected
    assert "".join(client.text_generation("The weather", stream=True, **asked)) == expected
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=url, token="wrong").text_generation("The weather", **asked)


def test_our_own(url: str, own: httpx.Client) -> None:
    with Client(url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert client.translate(TEXT, "de", source="en").text == translation(own)
    with Client(url) as client, pytest.raises(Rejected) as caught:
        client.translate(TEXT, "de")
    assert (caught.value.status, caught.value.code) == (401, "key_missing")
