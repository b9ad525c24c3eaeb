"""Beam search for one sequence: which hypotheses live on, and which are finished.

In go, step by step, the logits of every live hypothesis; out come the parents of those that live
next, so that the caller can bring their caches into place. This is the whole definition, and
`training.beam` follows the same:

Every live hypothesis is continued by every token that is not forbidden, and the continuations are
ranked by the sum of their log-probabilities. Of the first `size` of them, those that end are
finished; the first `size` of all that do not end live on. A finished one's score is its sum divided
by ((5 + n) / 6) ** length_penalty (Wu et al. 2016), n log-probabilities long, the end's included
and those of forced ids, which are none, left out. The search is over when `size` are finished (with
early stopping), when no live one can come among the best (without), or at the length limit, where
the live ones count as finished. Ties go to the better parent, then to the lower id; of equal scores
the earlier stands first. With size 1 and early stopping this is greedy decoding. A search that
branches does so at the first token only: later, the best continuation of each lives on or ends it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Beam, FinishReason, Hypothesis, Sampling
from app.engine.sampling import followers, forbidden, largest


@dataclass(frozen=True, slots=True)
class Branch:
    """A live hypothesis; `total` is the sum of its log-probabilities."""

    output: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: float


class BeamSearch:
    def __init__(
        self,
        beam: Beam,
        sampling: Sampling,
        prompt: Sequence[int],
        forced: Sequence[int],
        end_ids: Collection[int],
        limit: int,
    ) -> None:
        """`limit` is the longest output, forced ids and all."""
        self._beam = beam
        self._sampling = sampling
        self._prompt = tuple(prompt)
        self._forced = len(forced)
        self._end_ids = end_ids
        self._limit = limit
        self.length = len(forced)  # of every live hypothesis's output
        self.live = [Branch(tuple(forced), (0.0,) * len(forced), 0.0)]  # best first
        self._finished: list[Hypothesis] = []  # best first

    @property
    def best(self) -> tuple[Hypothesis, ...]:
        """The best finished hypotheses so far, at most as many as were asked for."""
        return tuple(self._finished[: self._beam.best])

    def advance(self, rows: Sequence[tuple[NDArray[np.float32], int, float]]) -> list[int]:
        """One token more for the live hypotheses, of each of which a row tells the logits
        (vocabulary,), the most likely token and its log-probability.

        Returns for each that lives on which of the former ones it continues; none: it is over.
        """
        found = [self._candidates(place, *row) for place, row in enumerate(rows)]
        if self._beam.branch and self.length > self._forced:
            found = [sorted(of)[:1] for of in found]
        ranked = sorted(candidate for of in found for candidate in of)
        self.length += 1
        live: list[Branch] = []
        parents: list[int] = []
        for rank, (cost, place, token, logprob) in enumerate(ranked):
            if len(live) == self._beam.size <= rank:
                break
            parent = self.live[place]
            if token in self._end_ids:
                if rank < self._beam.size:
                    end = Branch(parent.output, parent.logprobs, -cost)
                    self._finish(end, len(parent.output) + 1, "stop")
            elif len(live) < self._beam.size:
                output, logprobs = (*parent.output, token), (*parent.logprobs, logprob)
                live.append(Branch(output, logprobs, -cost))
                parents.append(place)
        if not live and not self._finished:  # nothing is allowed to come: cut here
            self._finish(self.live[0], len(self.live[0].output), "length")
        elif live and len(live[0].output) >= self._limit:
            for branch in live:
                self._finish(branch, len(branch.output), "length")
            live, parents = [], []
        self.live = live
        if self._over():
            self.live, parents = [], []
        return parents

    def _candidates(
        self, place: int, row: NDArray[np.float32], best: int, logprob: float
    ) -> list[tuple[float, int, int, float]]:
        """The continuations of one hypothesis that can matter: cost, place, id, log-probability."""
        branch = self.live[place]
        output, n = branch.output, self._sampling.no_repeat_ngram
        found = followers(output, output[len(output) - n + 1 :]) if 0 < n <= len(output) else ()
        banned = forbidden(self._sampling, self._prompt, output, self._end_ids, found)
        wanted = self._beam.size + len(self._end_ids) + len(banned)
        ids = largest(row, wanted) if wanted < row.size else np.arange(row.size)
        known = float(row[best])
        candidates = []
        for token, value in zip(ids.tolist(), row[ids].tolist(), strict=True):
            if token not in banned and value > -math.inf:
                own = logprob + (value - known)
                candidates.append((-(branch.total + own), place, token, own))
        return candidates

    def _finish(self, branch: Branch, length: int, reason: FinishReason) -> None:
        score = self._score(branch.total, length)
        self._finished.append(Hypothesis(branch.output, branch.logprobs, score, reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)

    def _score(self, total: float, length: int) -> float:
        """Of an output of this length, forced ids and the end included."""
        n = max(length - self._forced, 1)
        return float(total / ((5 + n) / 6) ** self._beam.length_penalty)

    def _over(self) -> bool:
        if self._beam.branch:
            return not self.live
        if self._beam.early_stopping:
            return len(self._finished) >= self._beam.size
        if len(self._finished) < self._beam.best or not self.live:
            return False
        # A sum only falls; what it is divided by is the largest at one end of the lengths to come.
        leader = self.live[0]
        ends = (len(leader.output) + 1, self._limit)
        reachable = max(self._score(leader.total, length) for length in ends)
        return self._finished[self._beam.best - 1].score >= reachable
