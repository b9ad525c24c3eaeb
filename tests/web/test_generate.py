"""The generate tab in a browser: stream, options, stop."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.servers import Server

expect.set_options(timeout=20_000)


@pytest.fixture(autouse=True)
def tab(page: Page) -> None:
    page.get_by_role("tab", name="Generate").click()


def generated(page: Page) -> Any:
    return page.get_by_role("group", name="Generated text")


def test_a_prompt_is_continued_with_its_options(page: Page, site: Server, seen: Any) -> None:
    options = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 12, "seed": 7}
    page.get_by_label("Prompt").fill("The weather")
    labels = ("Temperature", "Top-p", "Max tokens", "Seed")
    for label, value in zip(labels, options.values(), strict=True):
        page.get_by_label(label).fill(str(value))
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator("#generate-copy")).to_be_enabled()
    body = {"prompt": "The weather", **options}
    answer = site.client.post("/v1/generate", json=body).json()["generations"][0]
    assert generated(page).text_content() == "The weather" + answer["text"]
    assert json.loads(seen.posts("/v1/generate")[-1].post_data) == {**body, "stream": True}
    ends = {"length": "Ended at the limit", "stop": "Complete"}
    expect(page.locator("#generate-note")).to_have_text(ends[answer["finish_reason"]])


STOP_AT_ONCE = """() => {
  const stop = [...document.querySelectorAll("button")].find(
    (button) => button.textContent.trim() === "Stop");
  new MutationObserver((_, observer) => {
    if (!stop.disabled) { observer.disconnect(); stop.click(); }
  }).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


def test_stop_frees_the_server(page: Page, site: Server) -> None:
    page.get_by_label("Max tokens").fill("480")
    page.get_by_label("Temperature").fill("2")
    page.get_by_label("Top-p").fill("1")
    page.get_by_label("Prompt").fill("Once upon a time")
    page.evaluate(STOP_AT_ONCE)  # the model may end soon, and is faster than a hand
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#generate-note")).to_have_text("Stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    site.wait_until_idle()


def test_a_wrong_option_is_not_sent(page: Page, seen: Any) -> None:
    page.get_by_label("Top-p").fill("7")
    page.get_by_label("Prompt").fill("The weather")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#top_p:invalid")).to_be_focused()
    assert not seen.posts("/v1/generate")
