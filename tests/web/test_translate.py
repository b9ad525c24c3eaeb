"""The text tab in a browser: streams, pair, detection, alternatives, doubts, glossary, history."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import httpx
from playwright.sync_api import Page, Route, expect

from tests.servers import Server
from tests.web.steps import QUEUE, SLOTS, choose, finished, result, wanted, write

expect.set_options(timeout=20_000)

TEXT = "Where is the station? I would like a cup of tea."


def test_it_translates_while_one_types_and_stops_what_is_old(
    page: Page, site: Server, seen: Any
) -> None:
    choose(page, "en", "de")
    area = page.get_by_label("Text to translate")
    area.press_sequentially("Where is the station?", delay=5)
    finished(page)
    expect(result(page)).to_have_text(wanted(site, "Where is the station?")["text"])
    assert len(seen.posts("/v1/translate")) < 4  # not one for each key
    old = TEXT * 3

    def hold(route: Route) -> None:
        if route.request.post_data_json["text"] != old:
            route.continue_()

    page.route("**/v1/translate", hold)
    with page.expect_event("requestfailed") as failed:
        write(page, old)
        expect(result(page)).to_have_attribute("aria-busy", "true")
        write(page, TEXT)
    assert failed.value.post_data_json["text"] == old
    finished(page)
    expect(result(page)).to_have_text(wanted(site, TEXT)["text"])
    assert json.loads(seen.posts("/v1/translate")[-1].post_data)["text"] == TEXT
    live = page.locator("#live")
    expect(live).to_contain_text(wanted(site, TEXT)["text"][:20])


def test_the_stream_is_drawn_before_its_end(page: Page, site: Server, seen: Any) -> None:
    choose(page, "en", "fr")
    page.evaluate("""() => {
        window.drawn = [];
        new MutationObserver(() => window.drawn.push(document.getElementById('result').textContent))
            .observe(document.getElementById('result'), {childList: true});
    }""")
    text = "The weather is beautiful today. The children are playing in the garden.\n\nGood night!"
    text = "\n\n".join([text] * 5)
    write(page, text)
    finished(page)
    final = wanted(site, text, target="fr")["text"]
    assert result(page).text_content() == final and "\n\n" in final
    drawn = [one for one in page.evaluate("window.drawn") if one]
    assert len(drawn[0]) < len(final)
    assert json.loads(seen.posts("/v1/translate")[-1].post_data)["stream"] is True
    expect(result(page).get_by_role("button")).to_have_count(15)


def test_detection_is_shown_and_swap_uses_it(page: Page, site: Server) -> None:
    choose(page, "auto", "en")
    write(page, "Wo ist der Bahnhof?")
    expect(page.locator("#detected")).to_have_text(re.compile(r"Detected: German \(\d+ %\)"))
    translation = wanted(site, "Wo ist der Bahnhof?", "de", "en")["text"]
    expect(result(page)).to_have_text(translation)
    finished(page)
    page.get_by_role("button", name="Swap languages").click()
    expect(page.get_by_label("From", exact=True)).to_have_value("en")
    expect(page.get_by_label("To", exact=True)).to_have_value("de")
    expect(page.get_by_label("Text to translate")).to_have_value(translation)
    expect(result(page)).to_have_text(wanted(site, translation)["text"])


def test_alternatives_of_a_sentence_and_of_the_text(page: Page, site: Server) -> None:
    choose(page, "en", "de")
    write(page, TEXT)
    finished(page)
    second = result(page).get_by_role("button").nth(1)
    second.click()
    card = page.get_by_role("region", name="Alternatives")
    expect(card.locator(".quote")).to_have_text("I would like a cup of tea.")
    offered = wanted(site, "I would like a cup of tea.", beam=5, alternatives=5)["alternatives"]
    expect(card.locator(".choice")).to_have_text([one["text"] for one in offered])
    other = next(one["text"] for one in offered if one["text"] != second.text_content())
    card.get_by_role("button", name=other, exact=True).click()
    expect(card).to_be_hidden()
    first = wanted(site, TEXT)["text"].partition("?")[0]
    expect(result(page)).to_have_text(f"{first}? {other}")
    page.locator("#panel-translate").get_by_role("button", name="Alternatives").click()
    whole = wanted(site, TEXT, beam=5, alternatives=5)["alternatives"][-1]["text"]
    card.get_by_role("button", name=whole, exact=True).click()
    expect(result(page)).to_have_text(whole)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == whole


def doubtful(site: Server) -> str:
    """Two sentences, the second of which this model cannot translate."""
    rng = random.Random(1)
    for words in range(8, 40):  # of no language, with numbers between them
        parts = ["".join(rng.choices("bcdfghklmnpqrstvwz", k=7)) for _ in range(words)]
        numbers = [f"{rng.randrange(10**6):,}" for _ in range(words)]
        body = " ".join(f"{part} {number}" for part, number in zip(parts, numbers, strict=True))
        found = wanted(site, text := f"Good morning! X{body}.")["quality"]["sentences"]
        if len(found) == 2 and not found[0]["flags"] and found[1]["flags"]:
            return text
    raise AssertionError("this model is never in doubt")


def test_doubtful_sentences_are_marked_and_say_why(page: Page, site: Server) -> None:
    text = doubtful(site)
    choose(page, "en", "de")
    write(page, text)
    finished(page)
    flagged = result(page).locator(".flagged")
    expect(flagged).to_have_count(1)
    assert "Worth checking: " in flagged.get_attribute("aria-description")
    doubts = page.get_by_role("region", name="Worth checking")
    expect(doubts.get_by_role("button")).to_contain_text(flagged.text_content())
    doubts.get_by_role("button").press("Enter")
    expect(flagged).to_be_focused()
    expect(page.locator("#live")).to_contain_text("1 to check")


def test_terms_of_the_glossary_are_sent_and_kept(page: Page, site: Server, seen: Any) -> None:
    choose(page, "en", "de")
    page.locator("#glossary summary").click()
    page.get_by_label("Term 1", exact=True).fill("station")
    page.get_by_label("Translation 1", exact=True).fill("Haltestelle")
    write(page, "Where is the station?")
    expect(result(page)).to_contain_text("Haltestelle")
    finished(page)
    assert json.loads(seen.posts("/v1/translate")[-1].post_data)["glossary"] == {
        "station": "Haltestelle"
    }
    page.reload()
    page.locator("html[data-ready]").wait_for()
    page.locator("#glossary summary").click()
    expect(page.get_by_label("Translation 1", exact=True)).to_have_value("Haltestelle")
    page.get_by_role("button", name="Remove term 1").click()
    assert page.evaluate("JSON.parse(localStorage['gpt2mt.glossary']).de") == {}


def test_a_stored_glossary_is_chosen_by_name(page: Page, site: Server, seen: Any) -> None:
    stored = {"name": "trains", "source": "en", "target": "de", "entries": {"station": "Halt"}}
    assert site.client.post("/v1/glossaries", json=stored).status_code == 201
    page.reload()
    page.locator("html[data-ready]").wait_for()
    choose(page, "en", "fr")
    page.locator("#glossary summary").click()
    use = page.get_by_label("Use", exact=True)
    expect(use.locator("option")).to_have_count(1)  # it is for another pair
    choose(page, "en", "de")
    use.select_option("trains")
    expect(page.get_by_label("Translation 1", exact=True)).to_have_value("Halt")
    write(page, "Where is the station?")
    expect(result(page)).to_contain_text("Halt")
    finished(page)
    assert json.loads(seen.posts("/v1/translate")[-1].post_data)["glossary"] == "trains"
    assert site.client.delete("/v1/glossaries/trains").status_code == 204


def test_history_survives_a_reload_and_can_be_cleared_and_switched_off(
    page: Page, site: Server
) -> None:
    choose(page, "en", "de")
    write(page, "Good night!")
    finished(page)
    page.reload()
    page.locator("html[data-ready]").wait_for()
    page.locator("#history summary").click()
    entry = page.locator("#history-list").get_by_role("button")
    expect(entry).to_have_count(1)
    entry.click()
    expect(page.get_by_label("Text to translate")).to_have_value("Good night!")
    finished(page)
    page.get_by_role("button", name="Clear history").click()
    expect(entry).to_have_count(0)
    page.get_by_label("Keep translations in this browser").uncheck()
    write(page, "Where are the children?")
    expect(result(page)).to_have_text(wanted(site, "Where are the children?")["text"])
    finished(page)
    expect(entry).to_have_count(0)
    assert "children" not in page.evaluate("JSON.stringify(localStorage)")


def test_overload_is_told_and_waited_for(page: Page, site: Server, seen: Any) -> None:
    seen.network_may_fail = True  # Chromium tells a 503, too
    choose(page, "en", "de")
    wanted(site, "Good night! " * 8)  # a server that has just been quick asks to wait shortly
    translation = wanted(site, "Good night!")["text"]
    stats = site.engine.stats
    body = {"max_tokens": 400, "min_tokens": 400, "stream": True}
    with (
        httpx.Client(base_url=site.client.base_url, timeout=60) as client,
        client.stream("POST", "/v1/generate", json={"prompt": ["a"] * SLOTS, **body}),
        client.stream("POST", "/v1/generate", json={"prompt": ["b"] * QUEUE, **body}),
    ):
        site.wait(lambda: stats().queued == QUEUE, "the queue is not full")
        write(page, "Good night!")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(f"waiting; the limit is {QUEUE}")
        expect(alert).to_contain_text("Trying again in")
    expect(result(page)).to_have_text(translation)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_unreachable_server_is_told_and_asked_again(page: Page, site: Server, seen: Any) -> None:
    seen.network_may_fail = True
    choose(page, "en", "de")
    page.context.set_offline(True)
    write(page, "Good night!")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached. Trying again")
    page.context.set_offline(False)
    expect(result(page)).to_have_text(wanted(site, "Good night!")["text"])


def test_errors_are_told_in_the_words_of_the_server(page: Page, site: Server, seen: Any) -> None:
    seen.network_may_fail = True
    choose(page, "en", "de")
    long = "a" * 100_001
    refused = site.client.post("/v1/translate", json={"text": long, "source": "en", "target": "de"})
    assert refused.status_code == 422
    write(page, long)
    expect(page.get_by_role("alert")).to_contain_text(refused.json()["detail"])
    expect(page.locator("#count")).to_have_text("100,001 of 100,000 characters")


def test_markup_of_users_stays_text(page: Page, site: Server) -> None:
    choose(page, "en", "de")
    write(page, "<img src=x onerror=alert(1)> Good night! <b>Tea</b>")
    finished(page)
    page.locator("#history summary").click()
    assert page.locator("main img, main b").count() == 0


def test_texts_from_right_to_left_run_so(page: Page, site: Server) -> None:
    choose(page, "en", "de")
    write(page, "שלום עולם")
    finished(page)
    for element in (page.get_by_label("Text to translate"), result(page)):
        assert element.get_attribute("dir") == "auto"
    style = "e => getComputedStyle(e).direction"
    assert page.get_by_label("Text to translate").evaluate(style) == "rtl"
