"""A document whose units come back unchanged is the same document, in every format."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadDocument, InvalidField
from tests.app.documents import samples

WORDS = ["Hello", " ", "\n", "\r\n", "caf\u00e9 ", "\u4f60\u597d", "42", "\U0001f600", "a.b", "\t"]
MARKDOWN = [*WORDS, "*", "**", "_", "`", "[", "](x)", "[a]", "![", "<b>", "</b>", "\\*", "&amp;",
            "# ", "> ", "- ", "1. ", "```\n", "| a | b |\n", "|---|---|\n", "---\n", "[^1]", "~~",
            "[a]: http://x.example\n", "<div>", "</div>", "    ", "  \n", "\n\n",
            "===\n"]  # fmt: skip
MARKUP = [*WORDS, "<p>", "</p>", "<b>", "</b>", "<br>", "<code>", "</code>", "<pre>", "</pre>",
          "<script>", "</script>", "&lt;", "<!-- x -->", "<li>", "<a href='x>y'>", "</a>",
          '<i translate="no">', "</i>", "<", ">"]  # fmt: skip
CUES = ["Hello", " you", "\n", "- ", "<i>", "</i>", "{\\an8}", "7", "\u4f60\u597d", "a, b"]
ENTRY = st.text(st.sampled_from('ab %s{}\\"\n\t\u00e9'), max_size=30)


def made_of(parts: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts), max_size=30).map("".join).filter(bool)


@pytest.mark.parametrize(
    ("name", "data"),
    [("text", samples.PLAIN), ("markdown", samples.MARKDOWN), ("html", samples.HTML),
     ("srt", samples.SRT), ("po", samples.PO)],
)  # fmt: skip
@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_samples_come_back(name: str, data: str, eol: str, encoding: str) -> None:
    raw = data.replace("\r\n", "\n").replace("\n", eol).encode(encoding)
    assert samples.same(name, raw) == raw
    loud = samples.upper(name, raw)
    assert loud != raw and loud.decode(encoding)
    assert encoding == "utf-8" or loud[:2] == raw[:2]


@given(text=made_of(WORDS))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    assert samples.same("text", text) == text.encode()


@given(text=made_of(MARKDOWN))
@settings(max_examples=300, deadline=None)
def test_any_markdown_comes_back(text: str) -> None:
    assert samples.same("markdown", text) == text.encode()


@given(text=made_of(MARKUP))
@settings(max_examples=300, deadline=None)
def test_any_page_comes_back(text: str) -> None:
    assert samples.same("html", text) == text.encode()


@given(cues=st.lists(made_of(CUES), min_size=1, max_size=4), eol=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=200, deadline=None)
def test_any_subtitles_come_back(cues: list[str], eol: str) -> None:
    text = "".join(
        f"{i}\n00:00:0{i},000 --> 00:00:0{i},500\n{cue}\n\n" for i, cue in enumerate(cues)
    ).replace("\n", eol)
    try:
        same = samples.same("srt", text)
    except BadDocument as error:
        blank = any("\n\n" in f"\n{cue}" for cue in cues)  # it ends a cue
        assert "timing" in error.detail and blank
        return
    assert same == text.encode()


@given(entries=st.lists(st.tuples(ENTRY, st.booleans(), st.booleans()), max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_catalog_comes_back(entries: list[tuple[str, bool, bool]]) -> None:
    import polib

    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for i, (text, done, plural) in enumerate(entries):
        forms = {0: "x" * done, 1: "y" * done}
        catalog.append(
            polib.POEntry(msgid=f"{i}{text}", msgid_plural=text + "s", msgstr_plural=forms)
            if plural
            else polib.POEntry(msgid=f"{i}{text}", msgstr="x" * done, msgctxt=text or None)
        )
    raw = str(catalog)
    assert samples.same("po", raw) == raw.encode()
    again = polib.pofile("\n" + samples.upper("po", raw).decode())
    assert [e.msgid for e in again] == [e.msgid for e in catalog]
    for entry in again:
        assert samples.loud(entry.msgid) == entry.msgid or entry.translated()


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@given(
    runs=st.lists(
        st.tuples(st.text(st.sampled_from("ab \t\n<&\u00e9\u4f60"), max_size=8), st.booleans()),
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_docx_comes_back(runs: list[tuple[str, bool]]) -> None:
    def fill(made: object) -> None:
        paragraph = made.add_paragraph()  # type: ignore[attr-defined]
        for text, bold in runs:
            paragraph.add_run(text).bold = bold

    raw = samples.docx(fill)
    assert contents(samples.same("docx", raw)) == contents(raw)
    samples.upper("docx", raw)


@pytest.mark.parametrize("name", ["text", "markdown", "html", "srt", "po", "docx"])
@given(data=st.binary(min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    check: Callable[[str, bytes], bytes] = samples.same
    try:
        assert check(name, data) == data
    except InvalidField as error:
        assert error.param == "file"
