"""A server that needs API keys: the page asks for one, once, and keeps it for its tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from app.access import Key, digest_of
from app.main import create_app
from app.settings import Settings
from tests.servers import serve


def test_the_key_is_asked_for_and_kept_for_the_tab(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{Key('alice', digest_of('secret'))}\n")
    sent: list[Any] = []
    with serve(create_app(Settings(slots=2, threads=1, api_keys=keys))) as server:
        context = browser.new_context()
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("request", lambda request: sent.append(request))
        page.goto(f"http://127.0.0.1:{server.port}/")
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("send an API key")
        page.get_by_label("Key, kept until").fill("wrong")
        page.get_by_role("button", name="Use").click()
        expect(dialog).to_contain_text("not valid")
        page.get_by_label("Key, kept until").fill("secret")
        page.get_by_role("button", name="Use").click()
        expect(dialog).to_be_hidden()
        page.locator("html[data-ready=true]").wait_for()
        page.get_by_label("Text to translate").fill("Good morning!")
        expect(page.locator("#result")).not_to_be_empty()
        page.reload()
        page.locator("html[data-ready=true]").wait_for()
        expect(dialog).to_be_hidden()
        assert page.evaluate("JSON.stringify(localStorage)").find("secret") < 0
        context.close()
    assert not any("secret" in request.url for request in sent)


def test_without_a_key_the_page_tells_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{Key('alice', digest_of('secret'))}\n")
    with serve(create_app(Settings(slots=2, threads=1, api_keys=keys))) as server:
        context = browser.new_context()
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_role("dialog", name="API key").wait_for()
        page.keyboard.press("Escape")
        expect(page.locator("#translate-error")).to_contain_text("API key")
        context.close()
