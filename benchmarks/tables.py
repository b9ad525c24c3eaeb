"""Quartiles, ratios and markdown tables of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        low, median, high = np.percentile(list(values), (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.low:,.0f}-{self.high:,.0f})"


def best(speeds: dict[str, float]) -> str:
    """The name with the highest figure."""
    return max(speeds, key=lambda name: speeds[name])


def agreement(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Rows that are equal, and the share of ids before the first difference."""
    equal = prefix = total = 0
    for row, reference in zip(found, wanted, strict=True):
        same = [a == b for a, b in zip(row, reference, strict=True)]
        first = same.index(False) if False in same else len(same)
        equal += first == len(reference)
        prefix, total = prefix + first, total + len(reference)
    return equal, prefix / total


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column is text and the others are figures."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q percent of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(math.ceil(q / 100 * len(ranked)), 1) - 1] if ranked else math.nan
