"""How the page looks and is used: themes, accessibility, keyboard, small screens."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.servers import Server
from tests.web.steps import choose, finished, result, visit, write

expect.set_options(timeout=20_000)
TABS = ("Text", "Documents", "Generate")
DOUBTFUL = "Good morning! Zzyzx qwrtp 4711 blorf, 1234 5678 xylk 99 0.5 mnbvc."
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def grave(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found
            if v["impact"] in ("serious", "critical")]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave(browser: Browser, site: Server, theme: Any) -> None:
    context = browser.new_context(color_scheme=theme, bypass_csp=True)  # axe is put into the page
    page = context.new_page()
    visit(page, site)
    choose(page, "auto", "de")
    write(page, DOUBTFUL)
    finished(page)
    for summary in page.locator("summary").all():
        summary.click()
    page.locator("#panel-translate").get_by_role("button", name="Alternatives").click()
    expect(page.locator("#alternatives-list .choice").first).to_be_visible()
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        assert not grave(page), tab
    page.get_by_role("button", name="Keyboard shortcuts").click()
    assert not grave(page)
    context.close()


def test_the_theme_is_the_systems_until_one_is_chosen(page: Page) -> None:
    light = page.evaluate(BACKGROUND)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(BACKGROUND)
    assert dark != light
    page.get_by_label("Theme").select_option("light")
    assert page.evaluate(BACKGROUND) == light
    page.reload()
    assert page.evaluate(BACKGROUND) == light
    page.get_by_label("Theme").select_option("system")
    assert page.evaluate(BACKGROUND) == dark


def test_the_keyboard_is_enough(page: Page) -> None:
    choose(page, "en", "de")
    page.get_by_label("Text to translate").focus()
    page.keyboard.type("Good morning! Where is the station?")
    page.keyboard.press("Control+Enter")
    finished(page)
    page.keyboard.press("Tab")  # Clear
    page.keyboard.press("Tab")
    first, second = result(page).get_by_role("button").all()
    expect(first).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    choices = page.locator("#alternatives-list .choice")
    expect(choices.first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#alternatives")).to_be_hidden()
    expect(second).to_be_focused()
    page.keyboard.press("Alt+Shift+S")
    expect(page.get_by_label("From", exact=True)).to_have_value("de")
    finished(page)
    page.keyboard.press("Alt+Shift+C")
    assert page.evaluate("navigator.clipboard.readText()") == result(page).text_content()
    page.keyboard.press("Alt+Shift+2")
    expect(page.get_by_role("tab", name="Documents")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Generate")).to_be_focused()
    expect(page.get_by_label("Prompt")).to_be_visible()


def test_nothing_is_wider_than_a_small_phone(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 600})
    choose(page, "en", "de")
    write(page, f"{DOUBTFUL} https://example.org/{'long' * 30}")
    finished(page)
    for summary in page.locator("summary").all():
        summary.click()
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 320, tab
