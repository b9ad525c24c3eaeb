"""The rules of beam search on log-probabilities made by hand; with a model in test_decode.py."""

from __future__ import annotations

import math

import pytest

from training.beam import Hypothesis, Search, Settings

END, A, B = 0, 1, 2


def test_a_live_one_that_may_still_win_by_its_length_is_waited_for() -> None:
    search = Search(Settings(1, length_penalty=2.0, early_stopping=False, end=END), limit=20)
    assert search.advance([[(END, -1.0), (A, -1.5)]]) == [0]
    assert search.finished == [Hypothesis((), -1.0, -1.0, "stop")]
    assert search.live == [((A,), -1.5)]  # worse if it ended next, better if much later
    assert search.advance([[(END, -9.0), (B, -0.1)]]) == [0]
    assert search.advance([[(END, -0.1), (B, -30.0)]]) == []
    assert search.finished[0].ids == (A, B)
    assert search.finished[0].score == pytest.approx(-1.7 / (8 / 6) ** 2)
    assert search.finished[0].mean == pytest.approx(-1.7 / 3)


def test_one_that_can_win_no_more_is_not() -> None:
    search = Search(Settings(1, length_penalty=1.0, early_stopping=False, end=END), limit=20)
    assert search.advance([[(END, -1.0), (A, -4.2)]]) == []


def test_early_stopping_waits_for_as_many_as_live() -> None:
    search = Search(Settings(2, end=END), limit=20)
    assert search.advance([[(A, -0.5), (END, -1.0), (B, -9.0)]]) == [0, 0]
    assert search.live == [((A,), -0.5), ((B,), -9.0)]
    assert search.advance([[(END, -0.1), (A, -3.0)], [(END, -0.1), (A, -3.0)]]) == []
    assert [h.ids for h in search.finished] == [(A,), ()]


def test_an_end_that_is_not_among_the_first_is_not_finished() -> None:
    search = Search(Settings(2, end=END), limit=20)
    assert search.advance([[(A, -0.5), (B, -0.6), (END, -0.7)]]) == [0, 0]
    assert search.finished == []


def test_ties_go_to_the_better_parent_and_the_lower_id() -> None:
    search = Search(Settings(2, end=END), limit=20)
    search.advance([[(B, -1.0), (A, -1.0)]])
    assert search.live == [((A,), -1.0), ((B,), -1.0)]
    assert search.advance([[(A, -2.0)], [(A, -2.0), (B, -2.0)]]) == [0, 1]
    assert [ids for ids, _ in search.live] == [(A, A), (B, A)]


def test_where_nothing_may_come_it_is_cut() -> None:
    search = Search(Settings(2, end=END), limit=20)
    search.advance([[(A, -1.0), (B, -math.inf)]])
    assert search.advance([[(A, -math.inf), (B, -math.inf)]]) == []
    assert search.finished == [Hypothesis((A,), -1.0, -1.0, "length")]
