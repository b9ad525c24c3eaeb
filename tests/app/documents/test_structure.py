"""What must not change in a document does not when all of its text does."""

from __future__ import annotations

import io
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml
from markdown_it import MarkdownIt

from app.documents.paragraph import W
from app.documents.subtitles import wrap
from app.documents.units import Translated
from tests.app.documents import samples

DEBIAN_PAGES = Path("/usr/share/doc/python3.11/html/tutorial")
_NS = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


class Skeleton(HTMLParser):
    """Tags, attributes, comments, and the text of what is not translated."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[Any] = []
        self._kept: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, attrs))
        if tag in ("pre", "script", "style", "code", "kbd"):
            self._kept.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(f"/{tag}")
        if self._kept and self._kept[-1] == tag:
            self._kept.pop()

    def handle_comment(self, data: str) -> None:
        self.seen.append(("comment", data))

    def handle_data(self, data: str) -> None:
        if self._kept:
            self.seen.append(("text", data))


def test_tags_attributes_scripts_and_code_of_a_page_stay() -> None:
    made = samples.upper("html", samples.HTML).decode()
    assert Skeleton(made).seen == Skeleton(samples.HTML).seen
    assert "USING THE INTERPRETER" in made and "<td>ONE<td>TWO" in made


@pytest.mark.skipif(not DEBIAN_PAGES.is_dir(), reason="Debian's python3-doc is not installed")
@pytest.mark.parametrize("name", ["introduction.html", "interpreter.html", "classes.html"])
def test_pages_of_debians_python_documentation(name: str) -> None:
    raw = (DEBIAN_PAGES / name).read_bytes()
    assert samples.same("html", raw) == raw
    assert len(samples.read("html", raw).units) > 20
    made = samples.upper("html", raw)
    assert Skeleton(made.decode()).seen == Skeleton(raw.decode()).seen


def blocks(text: str) -> list[Any]:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found: list[Any] = []
    for token in parser.parse(text):
        kept = token.content if token.type in ("fence", "code_block") else ""
        found.append((token.type, token.map and None, kept))
        for child in token.children or []:
            raw = child.content if child.type in ("code_inline", "html_inline", "image") else ""
            found += [] if child.type == "text" else [(child.type, child.attrs, raw)]
    return found


def test_markdown_keeps_blocks_links_and_code() -> None:
    made = samples.upper("markdown", samples.MARKDOWN).decode()
    assert blocks(made) == blocks(samples.MARKDOWN)
    assert made.startswith("---\ntitle: Not text\n---\n") and "[REFERENCE][reference]" in made


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("Hello", "- no list"), ("Hello", "# no heading"), ("Hello", "1. no item"),
        ("Hello", "> no quote"), ("Hello", "a *b* [c](d) `e` <b> _f_ ~~g~~"), ("Hello", "==="),
        ("# Hello", "- here"), ("> Hello\n> you", "1) no item"), ("- Hello", "+ no item"),
    ],
)  # fmt: skip
def test_a_translation_does_not_become_markdown(source: str, made: str) -> None:
    document = samples.read("markdown", source)
    text = made.replace("<", "&lt;").replace(">", "&gt;")
    written = document.write([Translated(text)] * len(document.units)).decode()
    names = [kind for kind, *_ in blocks(written) if kind != "text_special"]
    assert names == [kind for kind, *_ in blocks(source.replace("\n> ", " "))]
    assert re.sub(r"\\(?=[\W_])", "", written).endswith(made)


def test_times_and_numbers_of_subtitles_stay() -> None:
    document = samples.read("srt", samples.SRT)
    made = document.write([Translated("Viel mehr Text als vorher, in einer Zeile.")] * 4).decode()
    kept = re.compile(r"^(?:\d+|.*-->.*)$", re.M)
    assert kept.findall(made) == kept.findall(samples.SRT)
    assert "{\\an8}Viel mehr Text als\nvorher, in einer Zeile.\n" in made
    assert "- Viel mehr Text als vorher, in einer Zeile.\n- Viel mehr" in made
    assert len(made.splitlines()) == len(samples.SRT.splitlines())


def test_bullets_and_numbers_of_plain_text_stay() -> None:
    document = samples.read("text", "- One\n 2. Two\n- -\n-3 degrees\n")
    assert [unit.text for unit in document.units] == ["One", "Two", "-3 degrees"]


def test_lines_are_about_equal() -> None:
    assert wrap("one two three four", 2) == ["one two", "three four"]
    assert wrap("\u4eca\u5929\u5929\u6c14", 2) == ["\u4eca\u5929", "\u5929\u6c14"]
    assert wrap("word", 1) == ["word"] and wrap("a", 3) == ["a"]


def test_a_catalog_keeps_all_but_new_translations() -> None:
    document = samples.read("po", samples.PO)
    made = [Translated(samples.loud(unit.text)) for unit in document.units]
    made[1] = Translated(made[1].text, doubtful=True)
    made[2] = Translated(made[2].text, doubtful=True)
    text = document.write(made).decode()
    assert text.startswith(samples.PO[: samples.PO.index("#. Extracted")])
    assert 'msgid "Done"\nmsgstr "Fertig"' in text and text.endswith('#~ msgstr ""\n')
    assert '#, c-format\nmsgid "The file %s is missing."\nmsgstr "THE FILE %s IS MISSING."' in text
    assert '\n#, fuzzy\nmsgctxt "menu"\n' in text
    assert "#, fuzzy, python-format\n" in text
    assert 'msgstr[0] "%(count)d FILE\\n"\nmsgstr[1] "%(count)d FILES\\n"' in text


FOOTNOTES = f"""<w:footnotes {_NS}><w:footnote w:id="2"><w:p><w:r><w:t>A note</w:t></w:r></w:p>
</w:footnote></w:footnotes>"""


def with_footnotes(data: bytes) -> bytes:
    made = io.BytesIO()
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name == "[Content_Types].xml":
                override = f'<Override PartName="/word/footnotes.xml" ContentType="{kind}"/>'
                part = part.replace(b"</Types>", override.encode() + b"</Types>")
            new.writestr(name, part)
        new.writestr("word/footnotes.xml", FOOTNOTES)
    return made.getvalue()


def test_a_docx_keeps_its_structure() -> None:
    link = (
        f'<w:hyperlink {_NS} w:anchor="a"><w:r><w:rPr><w:u w:val="single"/></w:rPr>'
        "<w:t>a link</w:t></w:r></w:hyperlink>"
    )
    field = "".join(
        f"<w:r>{inner}</w:r>"
        for inner in ('<w:fldChar w:fldCharType="begin"/>', "<w:instrText>PAGE</w:instrText>",
                      '<w:fldChar w:fldCharType="separate"/>', "<w:t>seven</w:t>",
                      '<w:fldChar w:fldCharType="end"/>', '<w:footnoteReference w:id="2"/>')
    )  # fmt: skip

    def fill(made: Any) -> None:
        paragraph = made.add_paragraph("Before ")._p
        for element in parse_xml(f"<w:p {_NS}>{link}<w:r><w:t> behind</w:t></w:r>{field}</w:p>"):
            paragraph.append(element)

    raw = with_footnotes(samples.docx(fill))
    made = samples.upper("docx", raw)
    before, after = docx.Document(io.BytesIO(raw)), docx.Document(io.BytesIO(made))

    def shape(document: Any) -> list[str]:
        return [e.tag for e in document.element.iter() if isinstance(e.tag, str)]

    assert shape(after) == shape(before)
    assert [p.style.name for p in after.paragraphs] == [p.style.name for p in before.paragraphs]
    bold = [[r.text for r in p.runs if r.bold] for p in after.paragraphs]
    assert ["BOLD"] in bold
    last = after.paragraphs[-1]._p
    assert [n.text for n in last.iter(W + "t")] == ["BEFORE ", "A LINK", " BEHIND", "seven"]
    assert after.tables[0].cell(1, 1).text == "LOWER RIGHT\tBEHIND A TAB\nNEW LINE"
    assert after.sections[0].header.paragraphs[0].text == "THE HEADER"
    assert after.sections[0].footer.paragraphs[0].text == "THE FOOTER"
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert b"A NOTE" in archive.read("word/footnotes.xml")


def test_text_beside_runs_gets_a_run_of_its_own() -> None:
    def fill(made: Any) -> None:
        paragraph = made.add_paragraph()
        paragraph.add_run("Bold").bold = True
        paragraph.add_run(" and a good deal of plain text")

    raw = samples.docx(fill)
    document = samples.read("docx", raw)
    wanted = "<x-0>Bold</x-0> and a good deal of plain text"
    made = [
        Translated("Zuvor <x-0>Fett</x-0> und" if unit.text == wanted else unit.text)
        for unit in document.units
    ]
    after = docx.Document(io.BytesIO(document.write(made))).paragraphs[-1]
    assert [(r.text, bool(r.bold)) for r in after.runs] == [
        ("Zuvor ", False), ("Fett", True), (" und", False)
    ]  # fmt: skip


def test_a_docx_translation_with_other_tags_is_not_written() -> None:
    raw = samples.docx()
    document = samples.read("docx", raw)
    made = document.write([Translated(u.text + "<b>x</b>") for u in document.units])
    with zipfile.ZipFile(io.BytesIO(made)) as new, zipfile.ZipFile(io.BytesIO(raw)) as old:
        assert all(new.read(name) == old.read(name) for name in old.namelist())
