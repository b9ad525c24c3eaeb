"""Detection among the served languages."""

from __future__ import annotations

import pytest

from app.text.detect import Detection, Detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(["en", "zh", "de", "fr"])


def test_the_sentences_of_the_fixtures(detector: Detector, sentences: list[str]) -> None:
    expected = [code for code in ("en", "zh", "de", "fr") for _ in range(3)]
    found = [detector.detect(sentence) for sentence in sentences]
    assert [one.language for one in found] == expected
    assert all(0.5 < one.confidence <= 1 for one in found)


def test_only_the_given_languages_are_considered(detector: Detector) -> None:
    assert detector.detect("Das ist ein Haus.", {"en", "fr"}).language in {"en", "fr"}
    assert detector.detect("Das ist ein Haus.", {"fr"}) == Detection("fr", 1.0)


@pytest.mark.parametrize("text", ["", "123", "😀😀😀", " \n", "\x00"])
def test_text_without_letters_has_no_confidence(detector: Detector, text: str) -> None:
    assert detector.detect(text) == Detection("en", 0.0)


def test_a_tie_goes_to_the_first_language(detector: Detector) -> None:
    assert detector.detect("ok").language == "en"


def test_languages_that_the_library_does_not_know() -> None:
    assert Detector(["qq"]).detect("word") == Detection("qq", 0.0)


def test_languages_are_ranked(detector: Detector) -> None:
    ranked = detector.ranked("Das ist ein Haus.")
    assert ranked[0] == detector.detect("Das ist ein Haus.")
    assert {one.language for one in ranked} == {"en", "zh", "de", "fr"}
    shares = [one.confidence for one in ranked]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 1) < 0.001
    assert detector.ranked("42") == [Detection("en", 0.0)]
