"""From logits to the next token of each row: greedy, sampling, and what is forbidden to repeat.

In go the logits of a run (n, vocabulary) and, for rows that want more than greedy, a `Sampler`
with the row's history; out come token ids and the log-probability of each under the model's own
distribution. Every row is worked on alone, over its own contiguous memory, and a sampler draws one
number per token from its own generator: neither company nor load can change an answer. A row whose
logits are not finite gets the log-probability NaN, for the caller to treat as failed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Sampling

_BLOCK = 128  # values per block where a row is searched in two levels
_FILTERS = 3  # passes that leave out the unlikely before the rest is sorted for top-p


class Sampler:
    """The options of one sequence, its random state and the n-grams of its output."""

    def __init__(self, options: Sampling, prompt: Sequence[int] = ()) -> None:
        self.options = options
        self._prompt = tuple(prompt)
        # Philox: any two seeds give independent streams, and its raw stream is fixed by numpy.
        self._bits = np.random.Philox(key=options.seed % 2**64)
        self._output: list[int] = []
        # Of each n - 1 tokens of the output: what followed, and how often.
        self._followers: dict[tuple[int, ...], Counter[int]] = {}

    def uniform(self) -> float:
        """The next number of [0, 1): one per sampled token, whatever the options are."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def take(self, token: int) -> None:
        """Note a token of the output."""
        if n := self.options.no_repeat_ngram:
            self._output.append(token)
            if len(self._output) >= n:
                key = tuple(self._output[len(self._output) - n : -1])
                self._followers.setdefault(key, Counter())[token] += 1

    def forbidden(self) -> list[int]:
        """What would complete an n-gram that has come as often as it may."""
        n, often = self.options.no_repeat_ngram, self.options.ngram_repeats
        if not n or len(self._output) < n:
            return []
        key = tuple(self._output[len(self._output) - n + 1 :])
        return [
            token
            for token, count in self._followers.get(key, {}).items()
            if count >= often and count >= occurrences(self._prompt, (*key, token))
        ]

    def choose(self, row: NDArray[np.float32], history: NDArray[np.int64], best: int) -> int:
        """The next token of one row (vocabulary,), noted; `best` is its most likely.

        `history` is prompt and output so far.
        """
        o, forbidden = self.options, self.forbidden()
        if o.temperature == 0.0 and o.repetition_penalty == 1.0 and best not in forbidden:
            token = best
        else:
            if forbidden:
                row = row.copy()
                row[forbidden] = -np.inf
            token = self.pick(row, history)
        self.take(token)
        return token

    def pick(self, row: NDArray[np.float32], history: NDArray[np.int64]) -> int:
        """The next token by temperature, top-k, top-p and repetition penalty."""
        o = self.options
        x: NDArray[np.floating] = row
        if o.repetition_penalty != 1.0:
            x = penalised(row, history, o.repetition_penalty)
        if o.temperature == 0.0:
            return int(x.argmax())
        ids = None
        if 0 < o.top_k < x.size:  # the temperature changes no order: choose first, then scale
            ids = largest(x, o.top_k)
            x = x[ids]
        weights = x.astype(np.float64)
        weights -= weights.max()
        weights /= o.temperature
        np.exp(weights, out=weights)
        if o.top_p < 1.0:
            kept = nucleus(weights, o.top_p)
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        index = draw(weights, self.uniform())
        return index if ids is None else int(ids[index])


def occurrences(ids: tuple[int, ...], ngram: tuple[int, ...]) -> int:
    """How often the n-gram stands in the ids, overlaps counted."""
    n = len(ngram)
    return sum(ids[i : i + n] == ngram for i in range(len(ids) - n + 1))


def greedy(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], list[float]]:
    """The best token of each row (the lowest id on ties) and its log-probability."""
    ids = np.empty(len(logits), np.int64)
    logprobs: list[float] = []
    scratch = np.empty(logits.shape[1], np.float32)  # one row: stays in the cache
    with np.errstate(all="ignore"):
        for i, row in enumerate(logits):
            best = row.argmax()
            ids[i] = best
            np.subtract(row, row[best], out=scratch)
            np.exp(scratch, out=scratch)
            total = float(np.add.reduce(scratch))
            logprobs.append(-math.log(total) if math.isfinite(total) else math.nan)
    return ids, logprobs


def choose(
    logits: NDArray[np.float32], rows: Sequence[tuple[Sampler, NDArray[np.int64]] | None]
) -> tuple[NDArray[np.int64], list[float]]:
    """The next token of each row and its log-probability; a row that is None is plain greedy."""
    ids, logprobs = greedy(logits)
    for i, state in enumerate(rows):
        if state is None or math.isnan(logprobs[i]):
            continue
        sampler, history = state
        row = logits[i]
        with np.errstate(all="ignore"):  # a tiny temperature sends the unlikely to -inf: right
            token = sampler.choose(row, history, int(ids[i]))
        logprobs[i] += float(row[token]) - float(row[ids[i]])
        ids[i] = token
    return ids, logprobs


def penalised(
    row: NDArray[np.float32], history: NDArray[np.int64], penalty: float
) -> NDArray[np.float64]:
    """CTRL's repetition penalty: every token seen before becomes less likely, once."""
    x = row.astype(np.float64)
    seen = x[history]
    x[history] = np.where(seen < 0, seen * penalty, seen / penalty)
    return x


def largest(x: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Ascending indices of the k largest values, 0 < k <= x.size, and of all ties of the k-th."""
    blocks = x.size // _BLOCK
    if k > blocks:
        return np.flatnonzero(x >= _kth(x, k))
    # k blocks have a maximum of at least `floor`, so the k-th largest value is no lower.
    floor = _kth(x[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1), k)
    ids = np.flatnonzero(x >= floor)
    values = x[ids]
    return ids[values >= _kth(values, k)]


def _kth(x: NDArray[np.floating], k: int) -> np.floating:
    value: np.floating = np.partition(x, x.size - k)[x.size - k]
    return value


def nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Ascending indices of the fewest largest weights that make up `top_p` of the sum; never none.

    Of equal weights the lower index goes first.
    """
    total = left = float(weights.sum())
    ids = np.arange(weights.size)
    # Whatever is no larger than its share of what may be left out is left out: less to sort.
    for _ in range(_FILTERS):
        spare = left - (top_p + 1e-9) * total
        large = np.flatnonzero(weights > max(spare, 0.0) / weights.size)
        ids, weights = ids[large], weights[large]
        left = float(weights.sum())
    order = np.argsort(-weights, kind="stable")
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return np.sort(ids[order[:count]])


def draw(weights: NDArray[np.float64], u: float) -> int:
    """The index that `u` of [0, 1) falls on when the weights are laid end to end."""
    if weights.size <= 2 * _BLOCK:
        return _locate(weights, u * float(np.cumsum(weights)[-1]))
    if weights.size % _BLOCK:
        weights = np.pad(weights, (0, -weights.size % _BLOCK))
    table = weights.reshape(-1, _BLOCK)
    sums = table.sum(axis=1)
    ends = np.cumsum(sums)
    target = u * float(ends[-1])
    block = _locate(sums, target)
    rest = max(target - float(ends[block] - sums[block]), 0.0)
    return block * _BLOCK + _locate(table[block], rest)


def _locate(weights: NDArray[np.float64], target: float) -> int:
    """The first index whose cumulated weight exceeds the target; at the end, the last with any."""
    ends = np.cumsum(weights)
    index = int(np.searchsorted(ends, target, side="right"))
    return index if index < weights.size else int(np.searchsorted(ends, ends[-1]))
