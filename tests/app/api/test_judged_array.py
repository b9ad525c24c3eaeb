"""Forty texts of several languages, full of what must come back, through POST /v1/translate."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.api.test_errors import JSON
from tests.servers import serve

TEXTS = [
    "Hello {name}, welcome back! 👋",
    "You have %1$s new messages and %2$d friends.",
    "Dear {{customer}}, your order {{order_id}} is on its way 🚚.",
    "Set $HOME before you start the server.",
    "Visit https://example.org/a?b=1&c=2 for more.",
    "Please write to help@example.org today.",
    "The <b>red</b> house is near the river.",
    "<p>The children play in the <a href=\"/garden\">garden</a>.</p>",
    "The train leaves at 8 and arrives at 12.",
    "I love cats 🐱 and dogs 🐶!",
    "Click <i>here</i> to open {file}. Then wait for %s.",
    "He bought 42 apples for {price} 🍎.",
    "Guten Morgen, {name}! Wie geht es dir? 😀",
    "Du hast %1$s neue Nachrichten.",
    "Liebe {{customer}}, das Paket kommt morgen.",
    "Die Datei $FILE ist zu groß.",
    "Mehr dazu auf https://example.org/hilfe/seite.html.",
    "Schreiben Sie bitte an info@example.org.",
    "Das <b>rote</b> Auto steht vor dem Haus.",
    "<p>Der Hund schläft <em>im Garten</em>.</p>",
    "Wir haben 3 Katzen und 2 Hunde.",
    "Der Zug nach {city} fährt um 9 Uhr 🚆.",
    "Bonjour {name}, comment allez-vous ? 🙂",
    "Vous avez %1$s messages et %2$s amis.",
    "Cher {{customer}}, merci pour votre visite.",
    "La variable $PATH est vide.",
    "Voir https://example.org/fr/aide pour la suite.",
    "Écrivez à contact@example.org ce soir.",
    "La <b>petite</b> fille mange une pomme.",
    "<p>Le chat dort <span class=\"x\">sur la table</span>.</p>",
    "Il y a 15 enfants dans le jardin.",
    "Cliquez <i>ici</i> pour ouvrir {file} 📄.",
    "你好 {name}，欢迎回来！",
    "您有 %1$s 条新消息。",
    "请访问 https://example.org/zh 了解更多。",
    "<p>孩子们在<b>花园</b>里玩。</p>",
    "請寫信到 help@example.org，謝謝。",
    "他買了 42 個蘋果 🍎。",
    "火車 {train} 在八點離開。",
    "變數 $LANG 是空的。",
]  # fmt: skip
HANT = re.compile("[請謝買個蘋車點離開變數來歡]")
TAG = re.compile(r"</?[a-z][^>]*>")
SPAN = re.compile(
    r"</?[a-z][^>]*>|\{\{\w+\}\}|\{\w+\}|%\d\$[sd]|%s|\$[A-Z]+|https?://[^\s，。]*[^\s，。.,]"
    r"|[a-z]+@example\.org|[\U0001F300-\U0001FAFF]"
)
NUMBER = re.compile(r"(?<![\w$%])\d+(?!\w)")
BAD = [
    (0, "a" * 100_001, "too_long"),
    (13, "bad \ud800 text", "invalid_field"),
    (27, "<i>" * 600 + "line\n" * 3_000, ""),
    (40, "\udfff", "invalid_field"),
]  # where they stand among the others, and why: the third has too many lines or too deep tags
WORDS = {"2": "two zwei 二", "3": "three drei 三", "8": "eight acht 八", "9": "nine neun 九",
         "12": "zwölf"}  # fmt: skip


@pytest.fixture(scope="module")
def bundled() -> Iterator[httpx.Client]:
    with serve(create_app(Settings(threads=1))) as server:
        yield server.client


def ask(client: httpx.Client, texts: list[str], target: str, form: str) -> list[dict[str, Any]]:
    body = {"text": texts, "source": "auto", "target": target, "format": form, "timeout_s": 300}
    response = client.post("/v1/translate", content=json.dumps(body), headers=JSON, timeout=300)
    assert response.status_code == 200, response.text[:300]
    found: list[dict[str, Any]] = response.json()["translations"]
    return found


def language(text: str, index: int) -> str:
    if index < 12:
        return "en"
    if index < 22:
        return "de"
    if index < 32:
        return "fr"
    return "zh-Hant" if HANT.search(text) else "zh"


def same_numbers(text: str, made: str) -> bool:
    """In digits, or a small one in words, of either."""
    before, after = (Counter(NUMBER.findall(SPAN.sub(" ", one))) for one in (text, made))

    def worded(number: str, where: str) -> bool:
        found = {*re.findall(r"\w+", where.casefold()), *where}  # Chinese is not spaced
        return bool(found & set(WORDS.get(number, "").split()))

    return all(worded(number, made) for number in before - after) and all(
        worded(number, text) for number in after - before
    )


@pytest.mark.parametrize(("target", "form"), [("de", "text"), ("en", "text"), ("de", "html")])
def test_what_must_stay_stays_or_is_flagged(
    bundled: httpx.Client, target: str, form: str
) -> None:
    assert len(TEXTS) == 40
    found = ask(bundled, TEXTS, target, form)
    assert len(found) == 40
    asked = kept = translated = 0
    for i, (text, one) in enumerate(zip(TEXTS, found, strict=True)):
        assert one["error"] is None and one["source"] == language(text, i), (text, one)
        translated += one["text"] != text
        before, after = Counter(SPAN.findall(text)), Counter(SPAN.findall(one["text"]))
        lost = (before - after) + (after - before)
        asked += before.total()
        kept += (before & after).total()
        told = one["quality"]["flags"]
        if lost:
            assert "spans" in told, (text, one)
        if form == "html":
            assert TAG.findall(one["text"]) == TAG.findall(text)
        assert same_numbers(text, one["text"]) or "numbers" in told, (text, one)
    assert asked == sum(len(SPAN.findall(text)) for text in TEXTS) > 50
    assert kept >= 0.95 * asked, f"{kept} of {asked}"
    assert translated >= 28  # the others are in the target language already


@pytest.mark.parametrize("form", ["text", "html"])
def test_bad_items_change_nothing_of_their_neighbours(bundled: httpx.Client, form: str) -> None:
    texts = list(TEXTS)
    for place, bad, _ in reversed(BAD):
        texts.insert(place, bad)
    found = ask(bundled, texts, "de", form)
    of_form = "invalid_field" if form == "html" else "too_long"
    bad_at = {place + i: code or of_form for i, (place, _, code) in enumerate(BAD)}
    for i, code in bad_at.items():
        error = found[i]["error"]
        assert (error["code"], error["param"]) == (code, f"text[{i}]"), error
        assert (found[i]["text"], found[i]["finish_reason"]) == ("", "error")
    good = [one for i, one in enumerate(found) if i not in bad_at]
    assert good == ask(bundled, TEXTS, "de", form)
    for i in (0, 19, 39):  # and each is what it is alone
        assert ask(bundled, [TEXTS[i]], "de", form) == [good[i]]
