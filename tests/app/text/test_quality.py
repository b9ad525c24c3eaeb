"""Every flag is raised by what it names and by nothing usual."""

from __future__ import annotations

import pytest

from app.text.quality import flags, unlooped


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


@pytest.mark.parametrize(
    ("source", "output", "expected"),
    [
        ("The cat sleeps.", "die die die die Katze schläft.", "die Katze schläft."),
        ("The cat sleeps.", "Es ist kalt, es ist kalt, es ist kalt, es ist kalt.", "Es ist kalt."),
        ("The cat sleeps.", "die Bit-Bit-Bit-Bin-Bin-Bin-Bet", "die Bit…"),
        ("The cat sleeps.", "die Katze die Katze die Katze und so und so und so", "die Katze…"),
        (
            "The cat sleeps.",
            "für die Zeit von a, für die Zeit von b, für die Zeit von c, für die Zeit von d",
            "für die Zeit von a…",
        ),
        ("The cat sleeps.", "她喜欢喜欢喜欢喜欢猫。", "她喜欢猫。"),
        ("The cat sleeps.", "die katzkatzkatzkatz schläft", "die katz schläft"),
        ("The cat sleeps.", "向wardwardwardward。", "向ward。"),
        ("The cat sleeps.", "100000000000 Katzen", None),
        ("One trillion dollars.", "1,000,000,000,000 Dollar.", None),
        (
            "Ha ha ha, the cat sleeps.",
            "Ha ha ha, die Katze Katze Katze Katze schläft.",
            "Ha ha ha, die Katze schläft.",
        ),
        ("No no no no no.", "Nein nein nein nein nein.", None),
        ("Ha ha ha! Ho ho ho!", "Ha ha ha! Ho ho ho!", None),
        ("The cat sleeps.", "Ja, ja, ja.", None),
        ("The cat sleeps.", "", None),
    ],
)
def test_endless_repetition_is_taken_out(source: str, output: str, expected: str | None) -> None:
    assert unlooped(source, output) == expected
    if expected is not None:
        assert unlooped(source, expected) is None
