"""Names in place of protected words and back; marks beside the words that they belong to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.marks import Mark, place
from app.text.protect import protect
from app.text.standins import NAMES, mask, segments, unmask
from tests.app.text.test_protect import PARTS


def there_and_back(text: str, change: dict[str, str], language: str = "en") -> str:
    found = protect(text, "text")
    masked = mask(found, language)
    assert masked is not None
    output = masked.text
    for old, new in change.items():
        output = output.replace(old, new)
    return found.restore(unmask(masked, output).text)


def test_names_stand_for_words() -> None:
    found = protect("Hello {name}, go to %s!", "text")
    masked = mask(found, "en")
    assert masked is not None and masked.text == "Hello Boston, go to Tom!"
    assert mask(protect("你好{name}", "text"), "zh").text == "你好波士顿"  # type: ignore[union-attr]
    turned = mask(found, "en", 1)
    assert turned is not None and turned.text == "Hello Tom, go to John!"
    back = unmask(masked, "Geh zu Tom, 波士顿!")
    assert found.restore(back.text) == "Geh zu %s, {name}!" and back.lost == ()


def test_a_name_that_is_lost_or_doubled_is_told() -> None:
    found = protect("Hello {name}.", "text")
    masked = mask(found, "en")
    assert masked is not None
    for output in ("Hallo.", "Boston Boston", "Bostoner"):
        assert [found.restore(group) for group in unmask(masked, output).lost] == ["{name}"]


def test_a_name_in_the_text_is_not_taken() -> None:
    masked = mask(protect("Tom from Boston saw {x}.", "text"), "en")
    assert masked is not None and masked.text == "Tom from Boston saw John."
    many = "a ".join(f"{{x{i}}} " for i in range(len(NAMES) + 1))
    assert mask(protect(many, "text"), "en") is None


def test_neighbours_are_one_group() -> None:
    masked = mask(protect("Go to {a} - {b}!", "text"), "en")
    assert masked is not None and masked.text == "Go to Boston!"


def test_marks_go_with_their_words() -> None:
    change = {"Hello": "Bonjour", "red": "rouge", "car": "voiture"}
    assert there_and_back("Hello <b>Tom</b>!", change) == "Bonjour <b>Tom</b>!"
    red = there_and_back("<p>Hello <i>red</i> car</p>", change)
    assert red == "<p>Bonjour <i>rouge</i> voiture</p>"
    assert there_and_back("Hello <b>{x}</b>.", change) == "Bonjour <b>{x}</b>."
    assert there_and_back("Great 😀, Tom", {}) == "Great 😀, Tom"


@given(text=PARTS, output=st.sampled_from(["", "x", "Wir sehen Boston und Tom.", "你好，世界"]))
@settings(max_examples=300, deadline=None)
def test_marks_always_survive_in_their_order(text: str, output: str) -> None:
    found = protect(text, "text")
    masked = mask(found, "en")
    if masked is not None:
        made = unmask(masked, output)
        marks = [char for char in found.text if found.is_mark(char)]
        assert [char for char in made.text if found.is_mark(char)] == marks
        lost = "".join(made.lost)
        words = [char for char in found.text if found.is_word(char)]
        assert all((char in made.text) != (char in lost) for char in words)
    assert "".join(segments(found)) == found.text


def test_places_rise_and_stay_at_the_edges() -> None:
    marks = [Mark(0, "a", True), Mark(6, "b", True), Mark(11, "c", False), Mark(12, "d", False)]
    assert place("Hello World!", "Bonjour monde !", marks) == [
        (0, "a"), (8, "b"), (13, "c"), (15, "d")
    ]  # fmt: skip
    assert place("abc", "", [Mark(1, "x", True)]) == [(0, "x")]
