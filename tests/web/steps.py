"""What the tests of the page do again and again."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page

from tests.servers import Server

SLOTS, QUEUE = 6, 32


def wanted(site: Server, text: str, source: str = "en", target: str = "de", **more: Any) -> Any:
    """What the server itself says."""
    body = {"text": text, "source": source, "target": target, **more}
    answer = site.client.post("/v1/translate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["translations"][0]


def choose(page: Page, source: str, target: str) -> None:
    page.get_by_label("From", exact=True).select_option(source)
    page.get_by_label("To", exact=True).select_option(target)


def write(page: Page, text: str) -> None:
    page.get_by_label("Text to translate").fill(text)


def result(page: Page) -> Locator:
    return page.get_by_role("group", name="Translation", exact=True)


def finished(page: Page) -> None:
    page.locator("#copy:enabled").wait_for()


def visit(page: Page, site: Server) -> None:
    page.goto(f"http://127.0.0.1:{site.port}/")
    page.locator("html[data-ready]").wait_for()
