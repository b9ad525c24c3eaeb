"""The logits of a run of which some rows have candidates.

In: of each row with candidates their logits alone, and, if there are others, all rows' logits of
the whole vocabulary. Out, as of any logits: each row's best id, and a row itself, in which what is
no candidate has -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Array, HostLogits, Only
from app.engine.sampling import greedy


class ListedLogits:
    """Implements `app.engine.request.LazyLogits`."""

    def __init__(self, only: Only, own: Sequence[Array], whole: Array | HostLogits) -> None:
        """`own`: of each row with candidates, in turn; `whole` may be empty if all have some."""
        self._only, self._own, self._whole = only, own, whole
        self._at = [row for row, one in enumerate(only) if one is not None]
        self._rows = dict(zip(self._at, own, strict=True))

    def __len__(self) -> int:
        return len(self._only)

    def __getitem__(self, row: int) -> Array:
        one = self._only[row]
        return np.asarray(self._whole[row]) if one is None else one.spread(self._rows[row])

    def best(self) -> tuple[NDArray[np.int64], list[float]]:
        """Of rows without candidates exactly what a run without any finds."""
        if len(self._at) < len(self):
            ids, logprobs = greedy(self._whole)
        else:
            ids, logprobs = np.empty(len(self), np.int64), [0.0] * len(self)
        for row, place, logprob in zip(self._at, *greedy(self._own), strict=True):
            one = self._only[row]
            assert one is not None
            ids[row], logprobs[row] = one.ids[place], logprob
        return ids, logprobs
