"""Stop strings across the borders of parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.text.stop import StopFinder

AB = st.text("abc", max_size=12)


def run(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    text = "".join(finder.push(part) for part in parts)
    return text + finder.finish(), finder.found


@given(parts=st.lists(AB, max_size=6), stops=st.lists(st.text("abc", min_size=1, max_size=4)))
def test_the_cuts_between_parts_do_not_matter(parts: list[str], stops: list[str]) -> None:
    whole = "".join(parts)
    found, text = run(parts, stops), whole
    assert found == run(list(whole), stops) == run([whole], stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert found[1] == bool(ends)
    assert text.startswith(found[0])
    if not ends:
        assert found[0] == text


def test_the_match_and_what_follows_are_withheld() -> None:
    assert run(["Hello wo", "rld. En", "d of", " it"], ["End of"]) == ("Hello world. ", True)


def test_the_beginning_of_a_stop_is_held_back_until_decided() -> None:
    finder = StopFinder(["\n\n"])
    assert finder.push("a\n") == "a"
    assert finder.push("b\n") == "\nb"
    assert finder.finish() == "\n"
    assert not finder.found


def test_the_first_to_be_complete_wins() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == ("xa", True)


def test_the_match_can_be_kept() -> None:
    finder = StopFinder(["b", "cde"], keep=True)
    assert [finder.push(part) for part in ("xc", "d", "ef")] == ["x", "", "cde"]
    assert finder.found and finder.finish() == ""
