"""Every flag is raised by what it names and by nothing usual."""

from __future__ import annotations

import pytest

from app.text.quality import flags


@pytest.mark.parametrize(
    ("source", "output", "languages", "expected"),
    [
        ("The cat sleeps.", "Die Katze schläft.", ("en", "de"), ()),
        ("The cat sleeps.", "猫在睡觉。", ("en", "zh"), ()),
        ("I have 2 cats.", "Ich habe 3 Katzen.", ("en", "de"), ("numbers",)),
        ("The cat sleeps.", "die die die die die", ("en", "de"), ("repetition",)),
        ("The cat sleeps.", "ja nein ja nein ja nein ja nein", ("en", "de"), ("repetition",)),
        ("No no no no no.", "Nein nein nein nein nein.", ("en", "de"), ()),
        ("The cat sleeps.", "The cat sleeps.", ("en", "de"), ("copied",)),
        ("Tom Smith", "Tom Smith", ("en", "de"), ()),
        ("The cat sleeps.", "Die 猫睡觉了。", ("en", "de"), ("script",)),
        ("The cat sleeps now.", "The cat is asleep", ("en", "zh"), ("script",)),
        ("Windows is here.", "Windows 在这里。", ("en", "zh"), ()),
        ("The cat sleeps.", "", ("en", "de"), ("length",)),
        ("The cat sleeps.", "xyz", ("en", "xx"), ()),
    ],
)
def test_flags(
    source: str, output: str, languages: tuple[str, str], expected: tuple[str, ...]
) -> None:
    tokens = (len(source) // 3, len(source) // 3)
    assert flags(source, output, languages, tokens, -0.5, False) == expected


def test_flags_of_what_the_engine_told() -> None:
    text = ("The cat sleeps.", "Die Katze schläft.", ("en", "de"))
    assert flags(*text, (10, 60), -3.0, True) == ("truncated", "length", "score")
    assert flags(*text, (100, 10), None, False) == ("length",)
