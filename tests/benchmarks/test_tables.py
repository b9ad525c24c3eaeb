"""Percentiles, quartiles, agreement and tables, each against a figure worked out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.tables import Spread, agreement, best, markdown, percentile


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert [percentile(values, q) for q in (1, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([3.0, 1.0], 50) == 1.0 and percentile([3.0, 1.0], 51) == 3.0
    assert percentile([1.0, math.inf], 95) == math.inf
    assert math.isnan(percentile([], 50))


def test_spread() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert str(Spread(1234.4, 1000.0, 2000.0)) == "1,234 (1,000-2,000)"


def test_agreement_counts_up_to_the_first_difference() -> None:
    wanted = [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert agreement(wanted, wanted) == (2, 1.0)
    assert agreement([[1, 2, 3, 4], [1, 9, 3, 4]], wanted) == (1, 5 / 8)
    with pytest.raises(ValueError):
        agreement([[1, 2, 3], [1, 2, 3, 4]], wanted)


def test_best_and_markdown() -> None:
    assert best({"slow": 1.0, "fast": 3.0, "fair": 2.0}) == "fast"
    table = "| a | b |\n|---|---:|\n| x | 1 |\n"
    assert markdown(("a", "b"), [("x", 1)]) == table
