"""From logits to the next token of each row: greedy, sampling, and what is forbidden to come.

In go the logits of a run (n, vocabulary) and, for rows that want more than greedy, a `Sampler`
that knows the row's prompt and output; out come token ids and the log-probability of each under
the model's own distribution. Every row is worked on alone, over its own contiguous memory, and a
sampler draws one number per token from its own generator: neither company nor load can change an
answer. A row whose logits are not finite gets the log-probability NaN, for the caller to treat as
failed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.engine.request import HostLogits, Logits, Sampling

_BLOCK = 128  # values per block where a row is searched in two levels
_FILTERS = 3  # passes that leave out the unlikely before the rest is sorted for top-p


def is_plain(options: Sampling) -> bool:
    """Whether the most likely token is always the one: greedy, and nothing changes the logits."""
    ignored = replace(
        options, top_k=0, top_p=1.0, min_p=0.0, seed=0, ngram_repeats=1, logprobs=0
    )  # of no effect at temperature 0
    return ignored == Sampling()


class Sampler:
    """The options of one sequence, its random state and its output so far."""

    def __init__(
        self,
        options: Sampling,
        prompt: Sequence[int] = (),
        forced: Sequence[int] = (),
        end_ids: Collection[int] = (),
    ) -> None:
        self.options = options
        self._prompt = tuple(prompt)
        self._end_ids = tuple(end_ids)
        self._output: list[int] = []
        self._counts: Counter[int] = Counter()
        self._followers: dict[tuple[int, ...], list[int]] = {}  # of each n - 1 tokens in a row
        self._last: tuple[int, ...] = ()  # n - 1 tokens of the output
        bias = dict(options.logit_bias)
        self._bias_ids = np.fromiter(bias, np.int64)
        self._bias = np.fromiter(bias.values(), np.float64)
        penalties = (options.presence_penalty, options.frequency_penalty)
        self._penalised = any(penalties) or options.repetition_penalty != 1.0
        self._adjusts = self._penalised or bool(bias)
        # Philox: any two seeds give independent streams, and its raw stream is fixed by numpy.
        self._bits = np.random.Philox(key=options.seed % 2**64)
        for token in forced:
            self.note(token)

    def uniform(self) -> float:
        """The next number of [0, 1): one per sampled token, whatever the options are."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def forbidden(self) -> list[int]:
        found = self._followers.get(self._last, ())
        return forbidden(self.options, self._prompt, self._output, self._end_ids, found)

    def note(self, token: int) -> None:
        """Take a token of the output."""
        self._output.append(token)
        if self._penalised:
            self._counts[token] += 1
        if n := self.options.no_repeat_ngram:
            self._last, last = (*self._last, token), self._last
            if len(last) == n - 1:
                self._followers.setdefault(last, []).append(token)
                self._last = self._last[1:]

    def choose(self, logits: Logits, at: int, best: int) -> int:
        """The next token of row `at`, noted; `best` is its most likely. The row is read if needed.
        """
        o, banned = self.options, self.forbidden()
        if o.temperature == 0.0 and not self._adjusts and best not in banned:
            token = best
        else:
            row = logits[at]
            x = self._adjusted(row) if self._adjusts else row
            if banned:
                x = x.copy() if x is row else x
                x[banned] = -np.inf
            token = self.pick(x)
        self.note(token)
        return token

    def _adjusted(self, row: NDArray[np.float32]) -> NDArray[np.float64]:
        """The row with bias and penalties."""
        o, x = self.options, row.astype(np.float64)
        x[self._bias_ids] += self._bias
        if not self._penalised:
            return x
        if o.repetition_penalty != 1.0:
            seen = np.array([*self._prompt, *self._counts], np.int64)
            x = penalised(x, seen, o.repetition_penalty)
        ids = np.fromiter(self._counts, np.int64)
        often = np.fromiter(self._counts.values(), np.float64)
        x[ids] -= o.frequency_penalty * often + o.presence_penalty
        return x

    def pick(self, x: NDArray[np.floating]) -> int:
        """The next token of adjusted logits, by temperature, top-k, top-p and min-p."""
        o = self.options
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
        if o.min_p > 0.0:
            kept = np.flatnonzero(weights >= o.min_p)  # the largest weight is 1
            ids = kept if ids is None else ids[kept]
            weights = weights[kept]
        index = draw(weights, self.uniform())
        return index if ids is None else int(ids[index])


def forbidden(
    options: Sampling,
    prompt: tuple[int, ...],
    output: Sequence[int],
    end_ids: Collection[int],
    found: Sequence[int],
) -> list[int]:
    """What may not come next: an end too early, or an n-gram that has come as often as it may.

    `found` are the `followers` in the output of its last n - 1 tokens.
    """
    banned = list(end_ids) if len(output) < options.min_tokens else []
    n, often = options.no_repeat_ngram, options.ngram_repeats
    if len(found) < often or not n:
        return banned
    start = output[len(output) - n + 1 :]
    return banned + [
        token
        for token, count in Counter(found).items()
        if count >= often and count >= occurrences(prompt, (*start, token))
    ]


def followers(ids: Sequence[int], start: Sequence[int]) -> Sequence[int]:
    """What stands behind `start`, wherever that is in the ids; both of one kind of sequence."""
    if not start:
        return ids
    found: list[int] = []
    last, size, end = start[-1], len(start), len(ids) - 1
    at = size - 1
    while at < end:
        try:
            at = ids.index(last, at, end) + 1
        except ValueError:
            break
        if ids[at - size : at] == start:
            found.append(ids[at])
    return found


def occurrences(ids: tuple[int, ...], ngram: tuple[int, ...]) -> int:
    """How often the n-gram stands in the ids, overlaps counted."""
    return sum(token == ngram[-1] for token in followers(ids, ngram[:-1]))


def greedy(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], list[float]]:
    """The best token of each row (the lowest id on ties) and its log-probability."""
    if isinstance(logits, HostLogits) and logits.sums is not None:
        return _greedy_by(logits.view(np.ndarray), logits.sums)
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


def _greedy_by(
    logits: NDArray[np.float32], sums: NDArray[np.float32]
) -> tuple[NDArray[np.int64], list[float]]:
    """The same where the sums of exp(logit - largest) are known."""
    ids = logits.argmax(axis=1)
    best = logits[np.arange(len(ids)), ids]
    told = np.isfinite(best) & np.isfinite(sums)
    totals = zip(sums.tolist(), told.tolist(), strict=True)
    return ids, [-math.log(total) if known else math.nan for total, known in totals]


def choose(
    logits: Logits, samplers: Sequence[Sampler | None]
) -> tuple[NDArray[np.int64], list[float]]:
    """The next token of each row and its log-probability; a row without a sampler is greedy."""
    ids, logprobs = greedy(logits) if isinstance(logits, np.ndarray) else logits.best()
    with np.errstate(all="ignore"):  # a tiny temperature sends the unlikely to -inf: right
        for i, sampler in enumerate(samplers):
            if sampler is None or math.isnan(logprobs[i]):
                continue
            best = int(ids[i])
            token = sampler.choose(logits, i, best)
            if token != best:
                row = logits[i]
                logprobs[i] += float(row[token]) - float(row[best])
                ids[i] = token
    return ids, logprobs


def likeliest(
    row: NDArray[np.float32], count: int, token: int, logprob: float
) -> list[tuple[int, float]]:
    """The `count` most likely ids, best first, and their log-probabilities; one of any is known.

    Of equal logits the lower id goes first.
    """
    ids = largest(row, count) if count < row.size else np.arange(row.size)
    values = row[ids]
    order = np.argsort(-values, kind="stable")[:count]
    known = float(row[token])
    return [
        (i, logprob + (value - known))
        for i, value in zip(ids[order].tolist(), values[order].tolist(), strict=True)
    ]


def penalised(
    x: NDArray[np.float64], seen: NDArray[np.int64], penalty: float
) -> NDArray[np.float64]:
    """CTRL's repetition penalty: every token seen before becomes less likely, once."""
    values = x[seen]
    x[seen] = np.where(values < 0, values * penalty, values / penalty)
    return x


def largest(x: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Ascending indices of the k largest values, 0 < k <= x.size, and of all ties of the k-th."""
    blocks = x.size // _BLOCK
    if k > blocks:
        return np.flatnonzero(x >= _kth(x, k))
    # k blocks have a maximum of at least `floor`, so the k-th largest value is no lower. A block is
    # every so manieth value: maxima over columns are much faster than over rows.
    floor = _kth(x[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0), k)
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
