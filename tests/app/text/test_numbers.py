"""Numbers are compared by value, in the forms of their languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.numbers import compare, find, localised, repaired, spelt


@pytest.mark.parametrize(
    ("source", "output", "languages", "same"),
    [
        ("1,234.5 cats", "1.234,5 Katzen", ("en", "de"), True),
        ("1,234.5 cats", "1\u202f234,5 chats", ("en", "fr"), True),
        ("1,234.5 cats", "1 234,5 chats", ("en", "fr"), True),
        ("1,234.5 cats", "1234,5 chats", ("en", "fr"), True),
        ("1,234 cats", "1,234 Katzen", ("en", "de"), False),  # 1.234 in German
        ("version 3.5", "Version 3.5", ("en", "de"), True),
        ("1.2.3", "1.2.3", ("en", "fr"), True),
        ("12,000 people", "1.2万人", ("en", "zh"), True),
        ("350,000,000", "3亿5000万", ("en", "zh"), True),
        ("3 million", "300万", ("en", "zh"), True),
        ("3 million", "3 Millionen", ("en", "de"), True),
        ("2 billion", "20 亿", ("en", "zh"), False),
        ("2 billion", "2 milliards", ("en", "fr"), True),
        ("3000万", "30 millions", ("zh", "fr"), True),
        ("2 cats", "zwei Katzen", ("en", "de"), True),
        ("2 cats", "两只猫", ("en", "zh"), True),
        ("35", "三十五", ("en", "zh"), True),
        ("two cats", "2 chats", ("en", "fr"), True),
        ("2 cats", "3 Katzen", ("en", "de"), False),
        ("2 cats", "Katzen", ("en", "de"), False),
        ("cats", "7 Katzen", ("en", "de"), False),
        ("5 5 5", "5 5", ("en", "de"), False),
        ("In 2020 100 people", "2020 100 Leute", ("en", "de"), True),
        ("at 10:30", "um 10:30", ("en", "de"), True),
    ],
)
def test_comparison(source: str, output: str, languages: tuple[str, str], same: bool) -> None:
    found = compare(source, output, languages)
    assert (not found.missing and not found.added) is same, found


def test_wrong_numbers_are_put_right() -> None:
    right = repaired("1,234.5 cats, 2 dogs", "99 Katzen, 2 Hunde", ("en", "de"))
    assert right == "1.234,5 Katzen, 2 Hunde"
    assert repaired("300万人", "3 people", ("zh", "en")) == "3,000,000 people"
    assert repaired("2 cats", "Katzen", ("en", "de")) is None
    assert repaired("2 cats", "2 Katzen", ("en", "de")) is None


@pytest.mark.parametrize(
    ("number", "languages", "expected"),
    [
        ("1,234.5", ("en", "de"), "1.234,5"),
        ("1.234,5", ("de", "en"), "1,234.5"),
        ("1.234.567", ("de", "zh"), "1,234,567"),
        ("3.5", ("en", "fr"), "3,5"),
        ("1 234,5", ("fr", "en"), "1,234.5"),
        ("2026", ("en", "de"), "2026"),
        ("1.2.3", ("en", "de"), "1.2.3"),
        ("1,5", ("en", "de"), "1,5"),
    ],
)
def test_forms(number: str, languages: tuple[str, str], expected: str) -> None:
    assert localised(number, languages) == expected


@given(st.text(st.sampled_from("0123456789.,' \u202f万亿千百十一二三零abc million"), max_size=60),
       st.sampled_from(["en", "de", "fr", "zh", "xx"]))  # fmt: skip
def test_any_text_can_be_read(text: str, language: str) -> None:
    for number in find(text, language):
        assert text[number.start : number.end] == number.text and number.values
    assert all(value.isdecimal() for value in spelt(text, language))
    assert not compare(text, text, (language, language)).missing


def test_long_numbers_are_read_in_time() -> None:
    for text in ("9" * 300_000, "亿" * 300_000, "1,234" * 60_000, "1 000" * 60_000, "1万" * 90_000):
        find(text, "zh")
        spelt(text, "zh")
