"""Documents over HTTP: our own route, and those of LibreTranslate and DeepL with their clients."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
import zipfile
from dataclasses import replace
from typing import Any

import deepl
import docx as docx_library
import httpx
import pytest

from app.api.files import Files
from app.documents.formats import FORMATS
from app.documents.run import Documents
from app.errors import DeadlineExceeded
from app.metrics import Metrics
from app.tasks.job import Deadline
from app.tasks.options import PLAIN, TranslateOptions
from tests.app.documents import samples
from tests.servers import Server

BASE = {"source": "en", "target": "de"}


def send(client: httpx.Client, name: str, data: str | bytes, **fields: str) -> httpx.Response:
    content = data.encode() if isinstance(data, str) else data
    return client.post("/v1/documents", files={"file": (name, content)}, data={**BASE, **fields})


def refused(response: httpx.Response, param: str | None, status: int = 422) -> str:
    assert response.status_code == status, response.text
    assert response.json()["param"] == param
    detail: str = response.json()["detail"]
    return detail


@pytest.mark.parametrize(
    ("name", "data", "kind", "units"),
    [
        ("a.txt", samples.PLAIN, "text/plain", 3),
        ("b.md", samples.MARKDOWN, "text/markdown", 11),
        ("c.HTML", samples.HTML, "text/html", 7),
        ("d.srt", samples.SRT, "application/x-subrip", 4),
        ("e.po", samples.PO, "text/x-gettext-translation", 5),
    ],
)
def test_a_file_comes_back_translated(
    client: httpx.Client, name: str, data: str, kind: str, units: int
) -> None:
    answer = send(client, name, data)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].partition(";")[0] == kind
    stem, _, ending = name.partition(".")
    told = f'attachment; filename="{stem}.de.{ending}"'
    assert answer.headers["Content-Disposition"] == told
    assert answer.headers["X-Translation-Source"] == "en"
    assert answer.headers["X-Translation-Items"] == str(units)
    assert 0 <= int(answer.headers["X-Translation-Flagged"]) <= units
    assert answer.content != data.encode() and answer.content.decode("utf-8")
    assert send(client, name, data).content == answer.content


def test_a_docx_comes_back_translated(client: httpx.Client) -> None:
    answer = send(client, "r\u00e9sum\u00e9.docx", samples.docx(), source="auto", target="fr")
    assert answer.status_code == 200, answer.text
    assert "filename*=UTF-8''r%C3%A9sum%C3%A9.fr.docx" in answer.headers["Content-Disposition"]
    assert answer.headers["X-Translation-Source"] == "en"
    made = docx_library.Document(io.BytesIO(answer.content))
    assert made.paragraphs[0].style.name == "Heading 1"
    assert made.paragraphs[3].text == "42" and made.paragraphs[0].text != "A heading"


def test_what_the_translator_says_of_a_text_is_in_the_file(client: httpx.Client) -> None:
    text = "Where is the station?"
    own = client.post("/v1/translate", json={**BASE, "text": text}).json()["translations"][0]
    assert send(client, "a.txt", f"{text}\n42\n").text == f"{own['text']}\n42\n"
    glossary = json.dumps({"station": "Bahnhof"})
    own = client.post(
        "/v1/translate", json={**BASE, "text": text, "glossary": {"station": "Bahnhof"}}
    ).json()["translations"][0]
    assert send(client, "a.txt", text, glossary=glossary).text == own["text"]


def test_a_long_document_is_translated_in_portions(server: Server) -> None:
    translator = server.app.state.gpt2mt.catalog.first.translator
    lines = [f"The weather {i} is nice." for i in range(11)]
    data = "\n".join(lines).encode()
    told: list[tuple[int, int]] = []

    def run(source: str, target: str, items: int) -> bytes:
        documents = Documents(Metrics(), 1000, max_items=items, max_characters=20_000)
        work = documents.run(
            translator, data, FORMATS["text"], source, target, Deadline.after(60), PLAIN,
            lambda done, whole: told.append((done, whole)),
        )  # fmt: skip
        return asyncio.run(work).data

    assert run("en", "de", 2) == run("en", "de", 100)
    assert told[:6] == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    assert run("auto", "en", 3) == data  # it is in that language already


def test_formats_are_told(client: httpx.Client) -> None:
    told = client.get("/v1/documents").json()
    assert [one["name"] for one in told["formats"]] == [
        "text", "markdown", "html", "srt", "po", "docx"
    ]  # fmt: skip
    assert told["formats"][5]["extensions"] == [".docx"] and told["max_bytes"] == 8_388_608


@pytest.mark.parametrize(
    ("name", "data", "fields", "param"),
    [
        ("a.txt", b"", {}, "file"),
        ("a.txt", b"caf\xe9", {}, "file"),
        ("a.txt", b"a\0b", {}, "file"),
        ("a.pdf", b"x", {}, "file"),
        ("a", b"x", {}, "file"),
        ("a.txt", b"x", {"format": "pdf"}, "format"),
        ("a.docx", b"no archive", {}, "file"),
        ("a.html", b"<div>" * 10_000 + b"x", {}, "file"),
        ("a.srt", b"1\n00:00:01,000 -> 00:00:02\nHello\n", {}, "file"),
        ("a.po", b'msgid "a\n', {}, "file"),
        ("a.txt", b"x", {"target": "xx"}, "target"),
        ("a.txt", b"x", {"source": "xx"}, "source"),
        ("a.txt", b"x", {"glossary": "{"}, "glossary"),
        ("a.txt", b"x", {"glossary": '{"a": 1}'}, "glossary"),
        ("a.txt", b"x", {"other": "1"}, "other"),
        ("a.txt", b"x", {"timeout_s": "1e9"}, "timeout_s"),
        ("a.txt", b"x" * 25_000, {}, "file"),
    ],
)
def test_errors_name_the_field(
    client: httpx.Client, name: str, data: bytes, fields: dict[str, str], param: str
) -> None:
    refused(send(client, name, data, **fields), param)


def test_forms_that_are_none(client: httpx.Client) -> None:
    refused(client.post("/v1/documents", json=BASE), "Content-Type", 415)
    parts = {"file": (None, "text")}
    refused(client.post("/v1/documents", files=parts, data=BASE), "file")
    refused(client.post("/v1/documents", files={"other": ("a.txt", b"x")}, data=BASE), "other")
    bare = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/v1/documents", content=b"--x\r\nnothing", headers=bare)
    assert response.status_code in (400, 422), response.text
    refused(send(client, "a.txt", "x", glossary="stored"), "glossary", 404)


def test_a_stored_glossary_is_for_documents_in_its_language(client: httpx.Client) -> None:
    stored = {"source": "en", "target": "de", "entries": {"station": "Bahnhof"}}
    assert client.put("/v1/glossaries/stations", json=stored).status_code == 200
    for text in ("Le chat dort dans le jardin.", "Der Hund schl\u00e4ft im Garten."):
        plain = send(client, "a.txt", text, source="auto")
        assert plain.status_code == 200 and plain.headers["X-Translation-Source"] != "en"
        found = send(client, "a.txt", text, source="auto", glossary="stations")
        assert (found.status_code, found.content) == (200, plain.content)
    text = "Where is the station today?"
    found = send(client, "a.txt", text, source="auto", glossary="stations")
    assert found.content == send(client, "a.txt", text, glossary="stations").content
    for wrong in ({"source": "fr"}, {"source": "auto", "target": "fr"}):
        refused(send(client, "a.txt", text, glossary="stations", **wrong), "glossary")
    fields = {"source_lang": "EN", "target_lang": "FR", "glossary_id": "stations"}
    answer = client.post("/v2/document", files={"file": ("a.txt", b"x")}, data=fields)
    assert answer.status_code == 400 and "from 'en' to 'de'" in answer.json()["message"]
    client.delete("/v1/glossaries/stations")


def test_a_docx_paragraph_that_cannot_be_put_back_is_flagged(server: Server) -> None:
    class Swapped:
        """The real translator, but tags come in another order, and nothing else is doubtful."""

        def __init__(self, translator: Any) -> None:
            self.pair, self.check_glossary = translator.pair, translator.check_glossary
            self._run = translator.run

        def prepaid(self, characters: int) -> Any:
            return self

        async def run(self, *args: Any, **more: Any) -> Any:
            made = await self._run(*args, **more)
            return replace(made, translations=[
                replace(t, text=swapped(t.text), quality=replace(t.quality, flags=()))
                for t in made.translations
            ])  # fmt: skip

    def swapped(text: str) -> str:
        return "".join(reversed(re.split("(<[^>]*>)", text)))

    def fill(made: Any) -> None:
        for name in ("green", "red"):
            paragraph = made.add_paragraph("The big house is ")
            paragraph.add_run(name).bold = True
            paragraph.add_run(" and old.")

    data = samples.docx(fill)
    documents = Documents(Metrics(), 1_000_000, 1000, 20_000)
    translator = Swapped(server.app.state.gpt2mt.catalog.first.translator)
    ask = ("en", "de", Deadline.after(60), TranslateOptions(retry=False))
    made = asyncio.run(documents.run(translator, data, FORMATS["docx"], *ask))  # type: ignore
    before, after = (docx_library.Document(io.BytesIO(d)).paragraphs[-2:]
                     for d in (data, made.data))  # fmt: skip
    assert [[r.text for r in p.runs] for p in after] == [[r.text for r in p.runs] for p in before]
    tagged = [unit for unit in FORMATS["docx"].read(data).units if "<" in unit.text]
    assert made.flagged == len(tagged) >= 2 and made.items > made.flagged


def test_uploads_have_their_own_limit(client: httpx.Client) -> None:
    text = "42\n" * 100_000  # over the limit of other bodies
    assert send(client, "a.txt", text).text == text
    refused(send(client, "a.txt", b"4" * 8_400_000), "file", 413)
    refused(send(client, "a.txt", b"4" * 9_000_000), None, 413)


def test_a_document_of_too_many_parts_is_refused(client: httpx.Client) -> None:
    assert "at most 100000" in refused(send(client, "a.txt", "a\n\n" * 100_001), "file")


def test_who_gives_up_leaves_no_place_to_more_readers(server: Server) -> None:
    reading = [0, 0]  # now, at most

    class Slow:
        name = "text"

        def read(self, data: bytes) -> Any:
            reading[0] += 1
            reading[1] = max(reading)
            time.sleep(0.3)
            reading[0] -= 1
            return FORMATS["text"].read(data)

    async def give_up_and_ask_again() -> None:
        documents = Documents(Metrics(), 1000, 100, 1000)
        translator = server.app.state.gpt2mt.catalog.first.translator
        for _ in range(6):
            work = documents.run(
                translator, b"42", Slow(), "en", "de", Deadline.after(0.05), PLAIN  # type: ignore
            )
            with pytest.raises(DeadlineExceeded):
                await work

    asyncio.run(give_up_and_ask_again())
    assert reading[1] == 2


def test_documents_are_counted(client: httpx.Client) -> None:
    send(client, "a.srt", samples.SRT)
    send(client, "a.srt", "nothing")
    metrics = client.get("/metrics").text
    for outcome in ("translated", "refused"):
        assert f'gpt2mt_documents_total{{format="srt",outcome="{outcome}"}}' in metrics


def test_a_client_that_goes_frees_the_engine(server: Server) -> None:
    lines = "\n".join(f"This is the sentence number {i} of many." for i in range(3000))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"http://127.0.0.1:{server.port}/v1/documents",
            files={"file": ("a.txt", lines.encode())},
            data=BASE,
            timeout=2,
        )
    server.wait_until_idle()
    assert 'outcome="cancelled"' in server.client.get("/metrics").text


def test_libretranslate_translates_files(client: httpx.Client) -> None:
    told = client.get("/frontend/settings").json()
    assert told["filesTranslation"] is True and ".docx" in told["supportedFilesFormat"]
    files = {"file": ("a page.html", samples.HTML.encode())}
    answer = client.post("/translate_file", files=files, data={**BASE, "api_key": "any"})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["translatedFileUrl"]
    url = answer.json()["translatedFileUrl"]
    assert url.startswith(str(client.base_url)) and url.endswith(".a_page.de.html")
    fetched = client.get(url)
    assert fetched.content == send(client, "a.html", samples.HTML).content
    assert fetched.headers["Content-Disposition"] == 'attachment; filename="a page.de.html"'
    for status, path in ((404, "/download_file/x"), (404, "/download_file/..%2f..%2fetc")):
        assert client.get(path).status_code == status


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, BASE, "file"),
        ({"file": ("a.txt", b"x")}, {"target": "de"}, "missing source"),
        ({"file": ("a.txt", b"x")}, {**BASE, "target": "xx"}, "xx is not supported"),
        ({"file": ("a.txt", b"")}, BASE, "empty"),
        ({"file": ("a.exe", b"x")}, BASE, ".exe"),
        ({"file": ("a.docx", b"x")}, BASE, "ZIP"),
    ],
)
def test_libretranslate_tells_what_is_wrong(
    client: httpx.Client, files: Any, fields: dict[str, str], message: str
) -> None:
    given = files or {"x": (None, "y")}
    answer = client.post("/translate_file", files=given, data=fields)
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


def test_files_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("app.api.files.time.monotonic", lambda: now[0])
    files = Files(number=2, size=10, age_s=5)
    for i in range(3):
        files.put(str(i), "n", "t", b"abc")
    assert files.get("0") is None and files.get("1") and files.get("2")
    files.put("big", "n", "t", b"x" * 9)
    assert files.get("2") is None and files.get("big")
    now[0] = 6.0
    assert files.get("big") is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of DeepL waits 5 s between two questions."""
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.05)))


def test_deepl_translates_documents(
    server: Server, client: httpx.Client, tmp_path: Any, quick: None
) -> None:
    translator = deepl.DeepLClient("any", server_url=f"http://127.0.0.1:{server.port}")
    source, made = tmp_path / "in.docx", tmp_path / "out.docx"
    source.write_bytes(samples.docx())
    translator.translate_document_from_filepath(source, made, target_lang="DE")
    with zipfile.ZipFile(made) as archive:
        body = archive.read("word/document.xml")
    with zipfile.ZipFile(io.BytesIO(send(client, "a.docx", samples.docx()).content)) as own:
        assert body == own.read("word/document.xml")
    output = io.BytesIO()
    status = translator.translate_document(
        samples.PLAIN.encode(), output, source_lang="EN", target_lang="FR", filename="a.txt"
    )
    assert status.done and status.billed_characters == 37
    assert output.getvalue() == send(client, "a.txt", samples.PLAIN, target="fr").content


def test_deepl_tells_what_is_wrong(
    server: Server, client: httpx.Client, quick: None
) -> None:
    translator = deepl.DeepLClient("any", server_url=f"http://127.0.0.1:{server.port}")
    with pytest.raises(deepl.DocumentTranslationException, match="ZIP"):
        translator.translate_document(b"x", io.BytesIO(), target_lang="DE", filename="a.docx")
    with pytest.raises(deepl.DeepLException, match="endings"):
        translator.translate_document(b"x", io.BytesIO(), target_lang="DE", filename="a.exe")
    for path in ("/v2/document/X", "/v2/document/X/result"):
        answer = client.post(path, json={"document_key": "x"})
        assert answer.status_code == 404 and list(answer.json()) == ["message"]
    assert client.post("/v2/document/X", json={}).status_code == 400
