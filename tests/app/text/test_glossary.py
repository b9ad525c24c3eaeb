"""Terms are found as whole words, the longest first; hits and misses are told."""

from __future__ import annotations

import pytest

from app.errors import InvalidField
from app.text.glossary import MAX_TERMS, Glossary


def test_terms_are_whole_words_in_any_case() -> None:
    glossary = Glossary.of({"cat": "Kater", "cat food": "Futter", "猫": "chat"})
    found = [(s, e, t) for s, e, t in glossary.find("Cat food for a cat, not a catalogue; 小猫")]
    assert found == [(0, 8, "Futter"), (15, 18, "Kater"), (38, 39, "chat")]
    assert Glossary().find("cat") == []


def test_hits_and_misses() -> None:
    glossary = Glossary.of({"cat": "Kater", "dog": "Köter", "bird": "Vogel"})
    assert glossary.check("A cat and a dog.", "Ein kater und ein Hund.") == ({"cat"}, {"dog"})


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({str(i): "x" for i in range(MAX_TERMS + 1)}, "201 terms"),
        ({"": "x"}, "blank"),
        ({"x": "  "}, "blank"),
        ({"x": "y" * 101}, "100 characters"),
        ({"a\nb": "y"}, "one line"),
        ({"x": "\ud800"}, "U\\+D800"),
    ],
)
def test_refusals(terms: dict[str, str], match: str) -> None:
    with pytest.raises(InvalidField, match=match) as caught:
        Glossary.of(terms)
    assert caught.value.param == "glossary"
