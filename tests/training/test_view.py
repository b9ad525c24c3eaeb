"""What is shown: lines in place on a terminal, one line a change elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from training.view import View, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with View({"a": "waiting", "long": "waiting"}) as view:
        assert not view.live
        view.show("a", "running, 1 of 2")
        view.show("a", "done in 1.0 s")
    assert capsys.readouterr().err == "a     running, 1 of 2\na     done in 1.0 s\n"


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with View({"a": "waiting"}, quiet=True) as view:
        view.show("a", "running")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_every_stage_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with View({"first": "waiting", "second": "waiting"}) as view:
        assert view.live
        before = terminal.getvalue()
        view.show("first", "done in 3.0 s")
    assert "first   waiting" in before and "second  waiting" in before
    after = terminal.getvalue().removeprefix(before)
    assert "first   done in 3.0 s" in after and "second  waiting" in after


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (192, "3 min 12 s"),
     (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
