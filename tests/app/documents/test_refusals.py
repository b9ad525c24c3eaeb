"""Files that are broken or made to do harm are refused, each with its reason."""

from __future__ import annotations

import io
import time
import zipfile

import pytest

from app.documents.archive import MAX_BYTES, MAX_ENTRIES, Archive
from app.documents.formats import format_of, translated_name
from app.errors import BadDocument, InvalidField, UnknownFormat
from tests.app.documents import samples


def refused(name: str, data: bytes | str) -> str:
    with pytest.raises(InvalidField) as caught:
        samples.read(name, data)
    assert caught.value.param == "file"
    return caught.value.detail


def replaced(part: str, content: bytes, extra: bool = False) -> bytes:
    """A document with another content in a part, or without the part if there is none."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(samples.docx())) as old,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            data = content if name == part else old.read(name)
            if data:
                new.writestr(name, data)
        if extra:
            new.writestr(part, content)
    return made.getvalue()


BODY = "word/document.xml"
BOMB = b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>" + b"".join(
    f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>".encode() for i in range(9)
) + b"]><x>&j;</x>"  # fmt: skip
OUTSIDE = b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"PK nothing", "ZIP"),
        (samples.docx()[:-200], "ZIP"),
        (samples.docx()[:9000], "ZIP"),
        (replaced(BODY, b""), "no word/document.xml"),
        (replaced("[Content_Types].xml", b""), "Content_Types"),
        (replaced(BODY, b"<w:document"), "not valid XML"),
        (replaced(BODY, b"<document/>"), "transitional"),
        (replaced(BODY, BOMB), "document type"),
        (replaced(BODY, OUTSIDE), "document type"),
        (replaced(BODY, OUTSIDE.decode().encode("utf-16")), "document type"),
        (replaced(BODY, b"<a>" * 10_000 + b"</a>" * 10_000), "not valid XML"),
        (replaced("word/media/a.bin", bytes(40 * 2**20), extra=True), "suspiciously well"),
    ],
    ids=range(12),
)
def test_docx_files_that_are_none(data: bytes, why: str) -> None:
    assert why in refused("docx", data)


def test_damaged_parts_are_found() -> None:
    data = bytearray(samples.docx())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        entry = archive.getinfo(BODY)
    start = entry.header_offset + 30 + len(BODY)
    data[start + 40 : start + 80] = bytes(40)
    assert "damaged" in refused("docx", bytes(data))


def test_archives_are_bounded_before_they_are_unpacked() -> None:
    def archive(count: int, size: int) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
            for i in range(count):
                file.writestr(f"{i}", bytes(size))
        return made.getvalue()

    with pytest.raises(BadDocument, match="entries"):
        Archive(archive(MAX_ENTRIES + 1, 1))
    size = 2**20  # below where the ratio counts
    with pytest.raises(BadDocument, match="unpacks to"):
        Archive(archive(MAX_BYTES // size + 1, size))


@pytest.mark.parametrize("name", ["text", "markdown", "html", "srt", "po"])
def test_text_that_is_none(name: str) -> None:
    assert "empty" in refused(name, b"")
    assert "not UTF-8 (byte 3)" in refused(name, b"caf\xe9")
    assert "UTF-16" in refused(name, b"\xff\xfea")
    assert "UTF-32" in refused(name, "text".encode("utf-32"))
    assert "NUL" in refused(name, b"a\0b")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1\n00:00:01,000 -> 00:00:02,000\nHello\n", 2),
        ("1\n00:00:01,000 --> 00:00:xx,000\nHello\n", 2),
        ("1\n00:00:05,000 --> 00:00:02,000\nHello\n", 2),
        ("1\n00:61:01,000 --> 00:62:02,000\nHello\n", 2),
        ("1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\nHello\n", 6),
        ("Hello", 1),
    ],
)
def test_subtitles_with_a_broken_timing(text: str, line: int) -> None:
    assert f"line {line}" in refused("srt", text)


@pytest.mark.parametrize(
    "text",
    ['msgid "a\nmsgstr ""\n', 'msgid "a"\nmsgstr "b"\nwhat\n', 'msgid "a"b"\nmsgstr ""\n',
     'msgstr ""\n', '"a"\n', 'msgid "a"\nmsgid "b"\n'],
)  # fmt: skip
def test_catalogs_with_a_wrong_syntax(text: str) -> None:
    assert "syntax" in refused("po", text)


def test_catalogs_of_another_charset() -> None:
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=ISO-8859-1\\n"\n'
    assert "ISO-8859-1" in refused("po", header)


def test_a_catalog_is_never_taken_for_a_path(tmp_path: object) -> None:
    assert "syntax" in refused("po", __file__)


def test_depth_is_bounded() -> None:
    assert "500 elements" in refused("html", "<div>" * 10_000 + "x")
    assert "brackets" in refused("markdown", "[" * 10_000)
    assert samples.same("markdown", "> " * 10_000 + "x")
    assert samples.same("markdown", "*a " * 3000)


def test_a_document_is_read_in_time() -> None:
    for name, part in (("srt", " "), ("srt", "1\n"), ("srt", "00:00:01,000 --> "), ("po", "#, "),
                       ("po", 'msgid "'), ("markdown", "`"), ("markdown", "**"), ("text", "a"),
                       ("markdown", "| a "), ("html", "<b "), ("markdown", "<")):  # fmt: skip
        began = time.process_time()
        try:
            samples.same(name, part * (60_000 // len(part)))
        except InvalidField as error:
            assert error.param == "file"
        assert time.process_time() - began < 5, (name, part)


def test_formats_are_found_by_ending_or_name() -> None:
    assert format_of("a/B.MD").name == "markdown" and format_of("x", "docx").name == "docx"
    assert format_of("x.txt", "htm").name == "html"
    wrong = (("a.pdf", "", "file"), ("", "", "file"), ("a.txt", "x", "format"))
    for filename, name, param in wrong:
        with pytest.raises(UnknownFormat) as caught:
            format_of(filename, name)
        assert caught.value.param == param
    assert translated_name("C:\\x\\report.final.docx", "de") == "report.final.de.docx"
    assert translated_name("../../etc/x.txt", "fr") == "x.fr.txt"
