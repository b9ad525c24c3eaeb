"""The scripts of Chinese: recognised, converted, and converted alike when a text still grows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from app.tasks.languages import served
from app.text.chinese import VARIANTS, certain, is_traditional, known_as, offered, variants
from app.text.detect import Detector
from app.text.glossary import Glossary

PLAIN = "鼠标在里面，头发在后面。出租车！\n软件"
LANGUAGES = {"en": "English", "zh": "Chinese", "de": "German"}


@pytest.mark.parametrize(
    ("text", "traditional"),
    [("今天天氣很好，孩子們在花園裡玩。", True), ("今天天气很好，孩子们在花园里玩。", False),
     ("你好", False), ("Hello", False), ("", False), ("我愛 AI", True)],
)  # fmt: skip
def test_the_script_is_recognised(text: str, traditional: bool) -> None:
    assert is_traditional(text) is traditional


def test_detection_tells_the_script() -> None:
    detector = Detector(list(LANGUAGES))
    assert detector.detect("今天天氣很好，孩子們在花園裡玩。").language == "zh-Hant"
    assert detector.detect("今天天气很好，孩子们在花园里玩。").language == "zh"
    assert Detector(["en", "zh", "zh-Hant"]).detect("今天天氣很好").language == "zh"


@pytest.mark.parametrize(
    ("code", "written"),
    [("zh-Hant", "滑鼠"), ("zh-TW", "滑鼠"), ("zh-HK", "滑鼠")],
)
def test_variants_are_written_and_read(code: str, written: str) -> None:
    variant = VARIANTS[code]
    text = variant.from_model(PLAIN)
    assert is_traditional(text) and "頭髮" in text and "後面" in text
    assert ("滑鼠" in text) is (code == "zh-TW") and ("計程車" in text) is (code == "zh-TW")
    assert variant.to_model(text) == PLAIN


@pytest.mark.parametrize("code", VARIANTS)
def test_a_growing_text_is_converted_as_the_whole(code: str) -> None:
    whole = VARIANTS[code].from_model(PLAIN)
    for end in range(len(PLAIN) + 1):
        part = PLAIN[: certain(PLAIN[:end])]
        assert whole.startswith(VARIANTS[code].from_model(part))


def test_codes() -> None:
    known = offered(LANGUAGES)
    assert list(known) == ["en", "zh", "zh-Hant", "zh-TW", "zh-HK", "de"]
    for given, code in (
        ("zh", "zh"), ("zh-Hans", "zh"), ("ZH-CN", "zh"), ("zh_TW", "zh-TW"),
        ("zh-hant", "zh-Hant"),
        ("zh-Hant-TW", "zh-TW"), ("zh-hant-hk", "zh-HK"), ("zh-MO", "zh-HK"),
    ):  # fmt: skip
        assert served(given, known) == code
    assert known_as("zh-TW", LANGUAGES) == "zh" and known_as("de", LANGUAGES) == "de"
    own = {"zh": "", "zh-Hant": ""}  # a model that writes it by itself
    assert not variants(own) and list(offered(own)) == ["zh", "zh-Hant"]
    assert list(offered({"en": ""})) == ["en"]
    assert known_as("zh-Hant", own) == "zh-Hant"


def test_a_glossary_is_told_as_it_was_given() -> None:
    given = Glossary.of({"貓": "cat", "計程車": "taxi"})
    scripted = given.scripted(VARIANTS["zh-TW"].to_model, str)
    assert scripted.find("出租车") == [(0, 3, "taxi")]
    assert scripted.check("猫在出租车里", "A Taxi") == ({"計程車"}, {"貓"})
    assert Glossary.of({"cat": "貓"}).scripted(str, VARIANTS["zh-Hant"].to_model).check(
        "a cat", "猫"
    ) == ({"cat"}, set())


def test_it_is_loaded_when_first_used() -> None:
    code = "import sys, app.main; assert 'opencc' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
