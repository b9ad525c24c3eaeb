"""Layout: nothing is lost, every piece fits, spaces follow the target language."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.segment import layout, sentences, translatable

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
TEXTLIKE = st.lists(
    st.sampled_from(
        ["Hello", " ", "  ", ". ", "? ", "。", "！", "\n", "\r\n", "\t", "    ", "你好",
         "Dr.", "1.", ", ", "\u3000", "\u2028", "é", "e\u0301", "👩\u200d👩\u200d👧",
         "3.5", '"', "«", "»", "—", "!"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


def whole(text: str) -> bool:
    return True


def up_to(limit: int):
    return lambda piece: len(piece) <= limit


@given(text=ANY | TEXTLIKE, language=st.sampled_from(["en", "zh", "de", "fr", "xx"]))
@settings(max_examples=300, deadline=None)
def test_gaps_and_pieces_are_the_text(text: str, language: str) -> None:
    for fits in (whole, up_to(5)):
        cut = layout(text, language, fits)
        assert cut.join([None] * len(cut.pieces), language, "en") == text
        assert cut.join([None] * len(cut.pieces), language, "zh") == text
        assert len(cut.gaps) == len(cut.pieces) + 1
        assert all(piece and piece == piece.strip() for piece in cut.pieces)
        assert not any(gap.strip() for gap in cut.gaps)
        assert all(fits(piece) or len(piece) < 12 for piece in cut.pieces)  # emoji stay whole


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Dr. Smith came. He left!", ["Dr. Smith came.", "He left!"]),
        ("de", "Am 3. Oktober kam z. B. Herr Dr. Müller. Gut.",
         ["Am 3. Oktober kam z. B. Herr Dr. Müller.", "Gut."]),
        ("fr", "M. Dupont est là. Mme. Curie aussi.", ["M. Dupont est là.", "Mme. Curie aussi."]),
        ("zh", "你好。你呢？好！", ["你好。", "你呢？", "好！"]),
        ("en", "1. Milk. 2. Eggs.", ["1. Milk.", "2. Eggs."]),
    ],
)  # fmt: skip
def test_sentences(language: str, text: str, expected: list[str]) -> None:
    assert [sentence.strip() for sentence in sentences(text, language)] == expected


@given(text=TEXTLIKE, language=st.sampled_from(["en", "zh"]), target=st.sampled_from(["en", "zh"]))
@settings(max_examples=200, deadline=None)
def test_columns_survive_whatever_the_translation(text: str, language: str, target: str) -> None:
    cut = layout(text, language, whole)
    joined = cut.join(["x"] * len(cut.pieces), language, target)
    for column in ("\t", "\n", "    "):
        assert joined.count(column) == text.count(column)


def test_tabs_and_wide_spaces_cut() -> None:
    cut = layout("id\tHello there\t\t7 \tBye\nName:   Anna  Maria    8", "en", whole)
    assert cut.pieces == ("id", "Hello there", "7", "Bye", "Name:", "Anna  Maria", "8")
    assert cut.gaps == ("", "\t", "\t\t", " \t", "\n", "   ", "    ", "")


def test_line_breaks_always_cut() -> None:
    cut = layout("one\ntwo\r\n\r\n  three \u2028four", "en", whole)
    assert cut.pieces == ("one", "two", "three", "four")
    assert cut.gaps == ("", "\n", "\r\n\r\n  ", " \u2028", "")


def test_long_sentences_are_cut_at_clauses_then_spaces_then_anywhere() -> None:
    text = "one two three, four five six"
    assert layout(text, "en", up_to(16)).pieces == ("one two three,", "four five six")
    assert layout("one two three four", "en", up_to(10)).pieces == ("one two", "three four")
    assert layout("a" * 16, "en", up_to(4)).pieces == ("aaaa",) * 4
    assert layout("我们去吃饭，他们回家睡觉", "zh", up_to(8)).pieces == (
        "我们去吃饭，",
        "他们回家睡觉",
    )


def test_a_hard_cut_spares_combined_characters() -> None:
    text = "e\u0301" * 10
    assert all(len(piece) % 2 == 0 for piece in layout(text, "en", up_to(5)).pieces)


def test_spaces_follow_the_target_language() -> None:
    english = layout("Hi. You?\nYes.  123 \n", "en", whole)
    assert english.pieces == ("Hi.", "You?", "Yes.", "123")
    assert english.join(["嗨。", "你？", "是。", None], "en", "zh") == "嗨。你？\n是。123 \n"
    assert english.join(["Hallo.", "Du?", "Ja.", None], "en", "de") == "Hallo. Du?\nJa.  123 \n"
    chinese = layout("你好。你呢？\u3000好！\n  好。", "zh", whole)
    assert chinese.join(["A.", "B?", "C!", "D."], "zh", "en") == "A. B? C!\n  D."


def test_only_letters_are_translated() -> None:
    assert translatable("a1") and translatable("好") and translatable("é")
    assert not any(map(translatable, ["123", "3.5 %", "😀😀", "--- * ---", "$ 5"]))


def test_a_megabyte_without_a_space_is_cut_in_time() -> None:
    cut = layout("x" * 1_000_000, "en", up_to(300))
    assert "".join(cut.pieces) == "x" * 1_000_000
    assert max(map(len, cut.pieces)) <= 300
