"""The rules that a line, a pair or a machine translation must pass."""

from __future__ import annotations

import pytest

from training.rules import Identifier, fault_of_pair, normalise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  two \t words\u3000here ", "two words here"),
        ("cafe\u0301", "café"),
        ("a\x00b\x1bc\ufeffd\u200be", "a b c d e"),
        ("\x7f \n", ""),
        ("ｆｕｌｌ ½", "ｆｕｌｌ ½"),  # compatibility forms stay what they are
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@pytest.mark.parametrize(
    ("first", "second", "languages", "fault"),
    [
        ("a house", "ein Haus", ("en", "de"), None),
        ("", "ein Haus", ("en", "de"), "empty"),
        ("a house", "", ("en", "de"), "empty"),
        ("Berlin", "Berlin", ("en", "de"), "identical"),
        ("x" * 2000, "y" * 2000, ("en", "de"), None),
        ("x" * 2001, "y" * 2000, ("en", "de"), "too long"),
        ("ü" * 1001, "y" * 1500, ("de", "en"), "too long"),  # bytes count
        ("x" * 60, "y" * 10, ("en", "de"), None),
        ("x" * 61, "y" * 10, ("en", "de"), "length ratio"),
        ("y" * 10, "x" * 61, ("en", "de"), "length ratio"),
        ("a house", "一座房子", ("en", "zh"), None),
        ("a house", "a casa", ("en", "zh"), "wrong script"),
        ("一座房子", "ein Haus", ("en", "de"), "wrong script"),
        ("the word 房子", "das Wort 房子", ("en", "de"), None),
        ("一座房子 a house", "家があります", ("zh", "ja"), None),
    ],
)
def test_each_rule_of_a_pair(
    first: str, second: str, languages: tuple[str, str], fault: str | None
) -> None:
    assert fault_of_pair(first, second, languages) == fault


@pytest.mark.parametrize(
    ("text", "language", "agrees"),
    [
        ("Ich lese heute Abend ein gutes Buch.", "de", True),
        ("Ich lese heute Abend ein gutes Buch.", "en", False),
        ("Hello world", "de", True),  # short, Latin letters
        ("今天天气很好", "zh", True),
        ("今天天气很好", "en", False),  # short, but no Latin letters
        ("12 + 34 = 46, 56 - 7 = 49", "en", True),  # no letters at all
        ("Ich lese heute Abend ein gutes Buch.", "xx", True),  # no model for it
    ],
)
def test_languages_are_identified_among_those_of_the_run(
    text: str, language: str, agrees: bool
) -> None:
    assert Identifier(["en", "de", "zh"]).agrees(text, language) is agrees
    assert Identifier(["en"]).agrees(text, "en")  # one language: nothing to tell apart
