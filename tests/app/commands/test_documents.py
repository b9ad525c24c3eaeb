"""`gpt2-mt translate FILE`, as a user types it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import docx
import pytest

from app.errors import InvalidField
from tests.app.documents import samples

Run = Callable[..., tuple[int, str]]
TRANSLATE = ("translate", "--source", "en", "--target", "de")


def test_documents_become_files_beside_them(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, page = tmp_path / "my report.docx", tmp_path / "page.html"
    report.write_bytes(samples.docx())
    page.write_text("<p>Hello there.</p>", encoding="utf-8")
    assert run(*TRANSLATE, str(report), str(page)) == (0, "")
    made = docx.Document(io.BytesIO((tmp_path / "my report.de.docx").read_bytes()))
    assert made.paragraphs[0].style.name == "Heading 1"
    text = (tmp_path / "page.de.html").read_text(encoding="utf-8")
    assert text.startswith("<p>") and text.endswith("</p>") and "Hello there." not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my report.de.docx", "my report.docx", "page.de.html", "page.html"
    ]  # fmt: skip


def test_where_a_translation_goes_can_be_told(run: Run, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "out.html"
    page.write_text("<p>Hello there.</p>", encoding="utf-8")
    assert run(*TRANSLATE, str(page), "--out", str(out))[0] == 0
    first = out.read_bytes()
    with pytest.raises(InvalidField, match="--force") as caught:
        run(*TRANSLATE, str(page), "--out", str(out))
    assert caught.value.param == "out"
    out.write_bytes(b"old")
    assert run(*TRANSLATE, str(page), "--out", str(out), "--force")[0] == 0
    assert out.read_bytes() == first
    (tmp_path / "de").mkdir()
    assert run(*TRANSLATE, str(page), "--out", str(tmp_path / "de"))[0] == 0
    assert (tmp_path / "de" / "page.de.html").read_bytes() == first


def test_what_is_wrong_is_named(run: Run, tmp_path: Path) -> None:
    page, broken = tmp_path / "page.html", tmp_path / "broken.docx"
    page.write_text("<p>Hello.</p>", encoding="utf-8")
    broken.write_bytes(b"x")
    for words, message in (
        (["nowhere.docx"], "no such file"),
        ([str(page), "--out", str(page), "--force"], "is there"),
        ([str(page), str(page)], "two files"),
        ([str(page), str(broken), "--out", str(tmp_path / "no")], "no such folder"),
        ([str(page), "--format", "html"], "--format"),
        ([str(page), "--prefix", "x"], "--prefix"),
        ([str(broken)], "broken.docx.*ZIP"),
    ):
        with pytest.raises(InvalidField, match=message):
            run(*TRANSLATE, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.docx", "page.html"]
    assert page.read_text(encoding="utf-8") == "<p>Hello.</p>"


def test_a_text_that_ends_like_a_file_is_a_text(run: Run) -> None:
    assert run(*TRANSLATE, "Please open notes.txt")[1].strip()
