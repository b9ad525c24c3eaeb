"""Forty texts in four languages through the bundled model: what is protected comes back."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import DEFAULT_BUNDLE
from app.tasks.job import Deadline
from app.tasks.options import TranslateOptions

TEXTS = [
    "Hello {name}, how are you?", "You have {count} new messages 😀", "Das ist <i>mein</i> Haus.",
    '<p>Please <b>click</b> the <a href="https://example.com/x?a=1&amp;b=2">link</a> now.</p>',
    "Schick die Datei an info@example.com .", "Il y a %d chats dans le jardin.", "我有{0}本书。",
    "<div><p>Bonjour <strong>Marie</strong> !</p><p>Où est la gare ?</p></div>",
    "<p>今天<b>天气</b>很好。</p>", "Welcome to ${CITY}! 🎉🎉", "It is %s o'clock.",
    "The price is $PRICE for {{n}} books.", "%1$s wants to talk to %2$s.",
    "Visit https://example.com/path/page.html for more information.",
    "<ul><li>One cat</li><li>Two dogs</li></ul>", "I ❤️ this book.", "Danke, {name}! 🙏",
    "Ich habe {0} Bücher und {1} Stifte.", 'Wo ist <span translate="no">Foo Bar</span>?',
    "<p>Use <code>ls -l</code> to see the files.</p>", "Merci {user} pour votre aide 👍",
    "Je t'aime 😍 beaucoup.", "Ouvrez <em>la porte</em>, s'il vous plaît.", "请给{name}打电话。",
    "他的邮箱是 tom@example.com 。", "你好 👋 朋友！", "Your order #{id} has been sent.",
    "<h1>Good morning</h1><p>The <b>red <i>car</i></b> is fast.</p>",
    "Press <kbd>Ctrl</kbd> to stop.", "There are 1,234.5 litres of water.",
    "In 2026 he bought 3 houses.", "Wir sehen uns um 10:30 am Bahnhof.", "Er hat 1.500 Euro.",
    "Elle a 2 500 livres.", "这座城市有300万人。", "Hallo {vorname} {nachname}!",
    "<a href='/a'>Read</a> <b>more</b> about <i>cats</i> 🐈.", "%(count)d people like your photo.",
    "<p>She said: &quot;I am here&quot; &amp; left.</p>",
    "Do you want to delete {file} from {folder}?",
]  # fmt: skip
WORDS = re.compile(
    r"#?\{+\w+\}+|\$\{?[A-Z]+\}?|%\d\$s|%\(\w+\)d|%[ds]\b|(?<!\")https?://[\w./]+|\w+@example\.com"
    r"|<code>.*?</code>|<kbd>.*?</kbd>|<span .*?</span>|[\U0001f300-\U0001faff❤]",
    re.ASCII,
)
TAGS = re.compile("<[^>]+>")


@pytest.fixture(scope="module")
def bundled() -> Iterator[Service]:
    opened = Service.open(DEFAULT_BUNDLE, ServiceOptions(threads=1), Metrics())
    opened.engine.start()
    yield opened
    opened.engine.stop(drain=False)


@pytest.mark.parametrize("target", ["de", "en", "fr", "zh"])
def test_placeholders_tags_and_emoji(bundled: Service, target: str) -> None:
    work = bundled.translator.run(
        TEXTS, "auto", target, Deadline.after(300), options=TranslateOptions(format="html")
    )
    results = asyncio.run(work).translations
    there = intact = 0
    for text, result in zip(TEXTS, results, strict=True):
        assert TAGS.findall(result.text) == TAGS.findall(text)
        wanted, found = Counter(WORDS.findall(text)), Counter(WORDS.findall(result.text))
        there += wanted.total()
        intact += (wanted & found).total()
        assert wanted <= found or "spans" in result.quality.flags, result
    assert len(TEXTS) == 40 and there >= 35 and intact >= 0.95 * there
