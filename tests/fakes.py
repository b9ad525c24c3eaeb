"""A decoder without a model: fast, deterministic, and unforgiving about slots.

Logits depend on the whole token history that the slot's own cache holds, so a sequence that is fed
from another's slot, from a stale position or with a wrong length gives other tokens. A hook sees
every call before it runs and may raise or wait; `poison` makes every run raise that holds a row
whose history it accepts. A call that raises leaves garbage in the positions it was asked to write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine.listed import ListedLogits
from app.engine.request import Event, Only

END = frozenset({0})
_STATES = 1021
_GARBAGE = -7


def ignore(event: Event) -> None:
    """The listener of a request that nobody asks about."""


def among(logits: NDArray[np.float32], only: Only) -> ListedLogits:
    """The slow and obvious way: all logits, of which each row keeps its candidates'."""
    pairs = zip(logits, only, strict=True)
    return ListedLogits(only, [row[one.ids] for row, one in pairs if one is not None], logits)


class RunFailed(Exception):
    """What a fake run raises."""


class FakeDecoder:
    def __init__(
        self,
        *,
        slots: int = 8,
        spare: int = 0,
        capacity: int = 64,
        vocabulary: int = 96,
        hook: Callable[[str, int], None] | None = None,
        poison: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self.slots, self.spare = slots, spare
        self.capacity = capacity
        self.vocabulary = vocabulary
        self.lists = True
        self.hook = hook
        self.poison = poison
        self.calls: list[tuple[str, int]] = []  # phase, rows
        self.moved = 0
        self._cache = np.full((slots + spare, capacity), _GARBAGE, np.int64)
        rng = np.random.Generator(np.random.PCG64(5))
        table = rng.standard_normal((_STATES, vocabulary)) * 2
        table[:, 0] += 2.0  # the end token comes often enough for sequences of mixed length
        self._logits = table.astype(np.float32)

    def prefill(
        self, first: int, prompts: Sequence[Sequence[int]], start: int = 0
    ) -> NDArray[np.float32]:
        assert prompts and first >= 0 and first + len(prompts) <= self.slots, "slots out of range"
        ends = [start + len(prompt) for prompt in prompts]
        assert all(start < end <= self.capacity for end in ends), "prompt length"
        assert start == 0 or (start % 2 == 0 and len(prompts) == 1), "one chunk, from an even start"
        rows = range(first, first + len(prompts))
        for row, end in zip(rows, ends, strict=True):
            self._cache[row, start:end] = _GARBAGE
        before = self._cache[first, :start].tolist()
        self._call("chunk" if start else "prefill", [[*before, *prompt] for prompt in prompts])
        for row, prompt, end in zip(rows, prompts, ends, strict=True):
            self._cache[row, start:end] = prompt
        return self._read(rows, ends)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        n = len(tokens)
        assert tokens.dtype == np.int64 and lengths.dtype == np.int32
        assert 0 < n <= self.slots and len(lengths) == n, "slots out of range"
        assert ((lengths > 0) & (lengths < self.capacity)).all(), "length out of range"
        rows = range(n)
        self._cache[rows, lengths] = _GARBAGE
        histories = [
            [*self._cache[row, : lengths[row]].tolist(), int(tokens[row])] for row in rows
        ]
        self._call("decode", histories)
        self._cache[rows, lengths] = tokens
        return self._read(rows, (lengths + 1).tolist())

    def prefill_among(
        self, first: int, prompts: Sequence[Sequence[int]], only: Only, start: int = 0
    ) -> ListedLogits:
        return among(self.prefill(first, prompts, start), only)

    def decode_among(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], only: Only
    ) -> ListedLogits:
        return among(self.decode(tokens, lengths), only)

    def move(self, source: int, target: int, length: int, start: int = 0) -> None:
        every = range(self.slots + self.spare)
        assert source in every and target in every and source != target
        assert 0 <= start <= length <= self.capacity and length > 0
        self._cache[target, start:] = _GARBAGE
        self._call("copy" if max(source, target) >= self.slots else "move", [])
        self._cache[target, start:length] = self._cache[source, start:length]
        self.moved += 1

    def _call(self, phase: str, histories: list[list[int]]) -> None:
        self.calls.append((phase, len(histories)))
        if self.hook is not None:
            self.hook(phase, len(self.calls))
        if self.poison is not None and any(map(self.poison, histories)):
            raise RunFailed(f"poison in a {phase} run")

    def _read(self, rows: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        states = []
        for row, length in zip(rows, lengths, strict=True):
            history = self._cache[row, :length]
            assert (history >= 0).all(), "a position was read that was not written"
            states.append(hash(tuple(history.tolist())) % _STATES)
        return self._logits[states]
