"""Stored glossaries: kept, bounded, named in errors, used in /v1/translate and DeepL's API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deepl
import httpx
import pytest

from app.bundle import Bundle
from app.errors import Exists, InvalidField, SettingsError, UnknownGlossary
from app.main import create_app
from app.settings import Settings
from app.tasks import glossaries as module
from app.tasks.glossaries import Glossaries, made
from tests.app.api.test_errors import problem
from tests.servers import serve

ANIMALS = {"name": "animals", "source": "en", "target": "de", "entries": {"cat": "Kater"}}


@pytest.fixture
def client(server: Any) -> Any:
    server.app.state.gpt2mt.glossaries = Glossaries()
    return server.client


def post(client: httpx.Client, status: int = 201, **change: Any) -> Any:
    answer = client.post("/v1/glossaries", json={**ANIMALS, **change})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_glossary_comes_and_goes(client: httpx.Client) -> None:
    assert client.get("/v1/glossaries").json() == {"glossaries": []}
    assert post(client) == ANIMALS == client.get("/v1/glossaries/animals").json()
    summary = {"name": "animals", "source": "en", "target": "de", "entry_count": 1}
    assert client.get("/v1/glossaries").json() == {"glossaries": [summary]}
    assert post(client, 409)["code"] == "already_exists"
    change = {"source": "EN-us", "target": "de", "entries": {"dog": "Hund"}}
    answer = client.put("/v1/glossaries/animals", json=change)
    assert answer.json() == {**ANIMALS, "entries": {"dog": "Hund"}}
    assert client.delete("/v1/glossaries/animals").status_code == 204
    for answer in (client.get("/v1/glossaries/animals"), client.delete("/v1/glossaries/animals")):
        assert problem(answer, 404, "name")["code"] == "glossary_not_found"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "../x"}, "name"), ({"name": ""}, "name"), ({"name": "a" * 65}, "name"),
        ({"source": "xx"}, "source"), ({"source": "auto"}, "source"), ({"target": "en"}, "source"),
        ({"entries": {}}, "entries"), ({"entries": {"a": " "}}, "entries"),
        ({"entries": {"a": "b" * 101}}, "entries"), ({"entries": {"a\ud800": "b"}}, "entries"),
        ({"entries": {str(i): "x" for i in range(5001)}}, "entries"), ({"more": 1}, "more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client: httpx.Client, change: Any, param: str) -> None:
    content = json.dumps({**ANIMALS, **change})
    kind = {"Content-Type": "application/json"}
    problem(client.post("/v1/glossaries", content=content, headers=kind), 422, param)
    assert client.get("/v1/glossaries").json() == {"glossaries": []}


def test_it_is_used_by_name(client: httpx.Client) -> None:
    post(client)
    body = {"text": "The cat is here.", "source": "en", "target": "de"}
    inline = client.post("/v1/translate", json={**body, "glossary": ANIMALS["entries"]}).json()
    named = client.post("/v1/translate", json={**body, "glossary": "animals"}).json()
    assert named["translations"] == inline["translations"]
    found = named["translations"][0]["quality"]["glossary"]
    assert found["hits"] + found["misses"] == ["cat"]
    texts = ["The cat is here.", "Où est le cat ?"]  # a text in another language is not of it
    several = client.post(
        "/v1/translate", json={"text": texts, "target": "de", "glossary": "animals"}
    ).json()["translations"]
    quality = [one["quality"]["glossary"] for one in several]
    assert several[1]["source"] == "fr" and quality[1] == {"hits": [], "misses": []}
    assert quality[0] == found
    for change in ({"target": "fr"}, {"source": "fr"}):
        answer = client.post("/v1/translate", json={**body, **change, "glossary": "animals"})
        assert "'animals' is from 'en' to 'de'" in problem(answer, 422, "glossary")["detail"]
    problem(client.post("/v1/translate", json={**body, "glossary": "none"}), 404, "glossary")
    problem(client.post("/v1/translate", json={**body, "glossary": 5}), 422, "glossary")


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GLOSSARIES", 2)
    kept = Glossaries()
    for name in "ab":
        kept.add(made(name, "en", "de", {"a": "b"}))
    with pytest.raises(InvalidField, match="2 glossaries"):
        kept.add(made("c", "en", "de", {"a": "b"}))
    kept.add(made("b", "en", "de", {"a": "c"}), replace=True)
    assert kept.get("b").entries == {"a": "c"}


def test_they_survive_a_restart(fp32_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "glossaries"
    settings = Settings(bundle=fp32_bundle.path, threads=1, slots=4, glossaries=folder)
    with serve(create_app(settings)) as server:
        post(server.client)
    with serve(create_app(settings)) as server:
        assert server.client.get("/v1/glossaries/animals").json() == ANIMALS
    assert [path.name for path in folder.iterdir()] == ["animals.json"]
    (folder / "broken.json").write_text("{")
    with pytest.raises(SettingsError, match=r"broken\.json"):
        Glossaries.open(folder)


def test_two_at_once(tmp_path: Path) -> None:
    kept = Glossaries.open(tmp_path)

    def add(i: int) -> bool:
        try:
            kept.add(made("same", "en", "de", {f"term{k}": str(i) for k in range(500)}))
        except Exists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(24))) == 1
        list(pool.map(lambda i: kept.add(made("same", "en", "de", {"a": str(i)}), replace=True),
                      range(24)))  # fmt: skip
    assert Glossaries.open(tmp_path).all() == kept.all()
    kept.remove("same")
    with pytest.raises(UnknownGlossary):
        kept.remove("same")
    assert not list(tmp_path.iterdir())


def test_deepls_client(client: httpx.Client, server: Any) -> None:
    translator = deepl.DeepLClient("any", server_url=f"http://127.0.0.1:{server.port}")
    pairs = {(one.source_lang, one.target_lang) for one in translator.get_glossary_languages()}
    assert ("en", "de") in pairs and len(pairs) == 12
    entries = {"cat": "Kater", "dog": "Hund"}
    info = translator.create_glossary("My animals", "EN", "DE", entries)
    assert (info.name, info.entry_count, info.ready) == ("My animals", 2, True)
    assert (info.source_lang, info.target_lang) == ("EN", "DE")
    text = "name,Name\n\"a, b\",A und B\n"
    other = translator.create_glossary_from_csv("csv", "EN", "DE", text)
    assert translator.get_glossary_entries(other) == {"name": "Name", "a, b": "A und B"}
    listed = translator.list_glossaries()
    assert {one.glossary_id for one in listed} == {info.glossary_id, other.glossary_id}
    assert translator.get_glossary_entries(info) == entries
    assert translator.get_glossary(info.glossary_id).name == "My animals"
    found = translator.translate_text(
        "The cat.", source_lang="EN", target_lang="DE", glossary=info
    )
    body = {"text": "The cat.", "source": "en", "target": "de", "glossary": info.glossary_id}
    own = client.post("/v1/translate", json=body).json()["translations"][0]
    assert found.text == own["text"]
    assert own["quality"]["glossary"]["hits"] + own["quality"]["glossary"]["misses"] == ["cat"]
    with pytest.raises(deepl.DeepLException, match="from 'en' to 'de'"):
        translator.translate_text(
            "The cat.", source_lang="EN", target_lang="FR", glossary=info.glossary_id
        )
    with pytest.raises(deepl.DeepLException, match="no glossary '0a1b'"):
        translator.translate_text("A", source_lang="EN", target_lang="DE", glossary="0a1b")
    translator.delete_glossary(info)
    with pytest.raises(deepl.GlossaryNotFoundException):
        translator.get_glossary(info.glossary_id)
    data = {"name": "x", "source_lang": "EN", "target_lang": "DE", "entries_format": "tsv"}
    answer = client.post("/v2/glossaries", json={**data, "entries": "a\tb\na"})
    assert answer.status_code == 400 and "line 2" in answer.json()["message"]
    data["entries_format"] = "csv"
    for entries in ('"' + "a" * 150_000 + '",b', "a\rb,c\r\nd"):  # over csv's limit; one cell
        answer = client.post("/v2/glossaries", json={**data, "entries": entries})
        assert answer.status_code == 400 and "entries" in answer.json()["message"], answer.text
    answer = client.post("/v2/translate", json={"text": "A", "target_lang": "DE",
                                                "glossary_id": other.glossary_id})  # fmt: skip
    assert answer.status_code == 400 and "source_lang" in answer.json()["message"]
    translator.close()
