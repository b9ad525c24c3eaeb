"""Where tags and emoji go in a translation: beside the word that stands where theirs stood.

Without alignments from the model, words that are alike in source and output (names, numbers) are
fixed points, between which positions are carried over in proportion and moved to the nearest edge
of a word. Marks keep their order, so tags stay nested as they were.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W]+)?")


@dataclass(frozen=True, slots=True)
class Mark:
    """Stands before character `at`; belongs to the word behind it, or else to the one before."""

    at: int
    char: str
    before: bool


def place(source: str, output: str, marks: Sequence[Mark]) -> list[tuple[int, str]]:
    """Positions in `output` for the marks of `source`, in their order."""
    if not marks:
        return []
    words = [match.span() for match in _WORD.finditer(output)]
    starts, ends = [w[0] for w in words], [w[1] for w in words]
    fixed = _fixed(source, output)
    placed: list[tuple[int, str]] = []
    low, opened = 0, -1  # where the last mark went, and where it stood if it opens something
    for mark in marks:
        if mark.at == 0:
            at = 0
        elif mark.at >= len(source):
            at = len(output)
        elif not words:
            at = min(_carried(mark.at, fixed), len(output))
        else:
            at = _nearest(_carried(mark.at, fixed), starts if mark.before else ends)
        if not mark.before and opened >= 0 and source[opened : mark.at].strip() and words:
            at = max(at, next((end for end in ends if end > low), len(output)))
        low = max(low, at)
        opened = mark.at if mark.before else -1
        placed.append((low, mark.char))
    return placed


def _fixed(source: str, output: str) -> list[tuple[int, int]]:
    """Pairs of positions that belong together, rising on both sides."""
    theirs = {m[0].casefold(): m.span() for m in _WORD.finditer(output)}
    seen = Counter(m[0].casefold() for m in _WORD.finditer(output))
    mine = Counter(m[0].casefold() for m in _WORD.finditer(source))
    points = [(0, 0)]
    for match in _WORD.finditer(source):
        word = match[0].casefold()
        if mine[word] == 1 and seen[word] == 1 and (len(word) > 1 or word.isdigit()):
            start, end = theirs[word]
            if start >= points[-1][1]:
                points += [(match.start(), start), (match.end(), end)]
    return [*points, (len(source), len(output))]


def _carried(at: int, fixed: Sequence[tuple[int, int]]) -> int:
    i = max(1, bisect_left(fixed, (at, 0)))
    (a, x), (b, y) = fixed[i - 1], fixed[min(i, len(fixed) - 1)]
    return x if b <= a else round(x + (y - x) * (at - a) / (b - a))


def _nearest(at: int, edges: Sequence[int]) -> int:
    return min(edges, key=lambda edge: abs(edge - at))
