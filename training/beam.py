"""Beam search for one prompt: which hypotheses live on, and which are finished.

Log-probabilities of the next tokens of each live hypothesis flow in, step by step; out flow the
places of the hypotheses that live on, so that the caller can reorder its cache, and in the end the
best finished ones. No model here. The engine of `app` follows the same rules, which are:

The continuations of all live hypotheses are ranked by the sum of log-probabilities. Of the first
`size` of them those that end are finished, and the first `size` that do not end live on. The score
of a finished one is its sum over ((5 + n) / 6) ** length_penalty (Wu et al. 2016), n tokens long,
the end included. It is over when `size` are finished (early stopping), when no live one can come
among the best (without), or at the limit, where the live ones count as finished. Ties go to the
better parent, then to the lower id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """`ids` without the end; `total` in nats, the end's included; `reason` "stop" or "length"."""

    ids: tuple[int, ...]
    total: float
    score: float
    reason: str

    @property
    def mean(self) -> float:
        """Mean log-probability a token, the end included; 0 if there is none."""
        return self.total / max(1, len(self.ids) + (self.reason == "stop"))


@dataclass(frozen=True)
class Settings:
    """`size` hypotheses live at a time, of which the `best` best are wanted; `end` ends one."""

    size: int
    length_penalty: float = 1.0
    best: int = 1
    early_stopping: bool = True
    end: int = 0


class Search:
    """One prompt's search: `live` and `finished` hypotheses, each best first."""

    def __init__(self, settings: Settings, limit: int) -> None:
        self.settings, self.limit = settings, limit
        self.live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]  # ids and their sum
        self.finished: list[Hypothesis] = []

    def advance(self, rows: Sequence[Sequence[tuple[int, float]]]) -> list[int]:
        """Go on by one token: for each live one (id, log-probability) of its `size` + 1 most
        probable tokens at least. Returns the parent of each that lives on; none: it is over.
        """
        size = self.settings.size
        ranked = sorted(
            (-(total + value), place, token)
            for place, ((_, total), row) in enumerate(zip(self.live, rows, strict=True))
            for token, value in row
            if value > -math.inf
        )
        live: list[tuple[tuple[int, ...], float]] = []
        parents: list[int] = []
        for rank, (cost, place, token) in enumerate(ranked):
            ids = self.live[place][0]
            if token == self.settings.end:
                if rank < size:
                    self._finish(ids, -cost, "stop")
            elif len(live) < size:
                live.append(((*ids, token), -cost))
                parents.append(place)
        if not live and not self.finished:  # nothing is allowed to come: cut here
            self._finish(*self.live[0], "length")
        elif live and len(live[0][0]) >= self.limit:
            for ids, total in live:
                self._finish(ids, total, "length")
            live = []
        self.live = live
        if self._over():
            self.live = []
        return parents if self.live else []

    def _finish(self, ids: tuple[int, ...], total: float, reason: str) -> None:
        score = self._score(total, len(ids) + (reason == "stop"))
        self.finished.append(Hypothesis(ids, total, score, reason))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)

    def _score(self, total: float, length: int) -> float:
        return total / float(((5 + max(length, 1)) / 6) ** self.settings.length_penalty)

    def _over(self) -> bool:
        best = self.settings.best
        if self.settings.early_stopping:
            return len(self.finished) >= self.settings.size
        if len(self.finished) < best or not self.live:
            return False
        # A sum only falls; what it is divided by is largest at one end of the lengths to come.
        ids, total = self.live[0]
        reachable = max(self._score(total, n) for n in (len(ids) + 1, self.limit))
        return self.finished[best - 1].score >= reachable
