"""The documents tab in a browser: upload, drop, download, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.servers import Server
from tests.web.steps import choose

expect.set_options(timeout=20_000)
TEXT = "Good morning!\n\nWhere is the station?\n"


@pytest.fixture(autouse=True)
def tab(page: Page) -> None:
    choose(page, "en", "de")
    page.get_by_role("tab", name="Documents").click()
    expect(page.locator("#formats")).to_contain_text(".txt")


def translated(site: Server, name: str, content: str) -> bytes:
    """What the server itself makes of a file."""
    answer = site.client.post(
        "/v1/documents",
        files={"file": (name, content.encode())},
        data={"source": "en", "target": "de"},
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_chosen_file_comes_back_translated(page: Page, site: Server, tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text(TEXT, encoding="utf-8")
    page.get_by_label("Choose a file").set_input_files(path)
    link = page.get_by_role("link", name="Download letter.de.txt")
    expect(link).to_be_focused()
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "letter.de.txt"
    assert download.value.path().read_bytes() == translated(site, "letter.txt", TEXT)
    told = page.get_by_role("list", name="Translated documents")
    expect(told).to_contain_text("from English, 2 texts")
    expect(page.locator("#live")).to_have_text("letter.de.txt is ready")


def test_a_file_can_be_dropped_and_the_glossary_holds(page: Page, site: Server) -> None:
    page.locator("#glossary summary").click()
    page.get_by_label("Term 1", exact=True).fill("station")
    page.get_by_label("Translation 1", exact=True).fill("Haltestelle")
    dropped = page.evaluate_handle(
        """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([text], "note.md", {type: "text/markdown"}));
            return data;
        }""",
        "# Where is the station?\n",
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": dropped})
    expect(page.locator("#drop")).to_have_class("drop over")
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    with page.expect_download() as download:
        page.get_by_role("link", name="Download note.de.md").click()
    text = download.value.path().read_text(encoding="utf-8")
    assert text.startswith("# ") and "Haltestelle" in text


def test_what_the_server_refuses_is_told_in_its_words(
    page: Page, site: Server, seen: Any, tmp_path: Path
) -> None:
    seen.network_may_fail = True
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    answer = site.client.post(
        "/v1/documents", files={"file": ("picture.png", path.read_bytes())}, data={"target": "de"}
    )
    page.get_by_label("Choose a file").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text(answer.json()["detail"])
    most = site.client.get("/v1/documents").json()["max_bytes"]
    big = tmp_path / "big.txt"
    big.write_bytes(b"a" * (most + 1))
    sent = len(seen.posts("/v1/documents"))
    page.get_by_label("Choose a file").set_input_files(big)
    expect(page.get_by_role("alert")).to_contain_text("at most")
    assert len(seen.posts("/v1/documents")) == sent
