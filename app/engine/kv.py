"""The slot table: which sequence owns which KV slot of the decoder.

The active rows are always the slots 0..n-1 without a gap, so that one decode run covers exactly
them. A sequence enters at slot n; when one leaves, the last row is moved into its slot. The table
also holds what a decode run needs of each row: the cached length and the token to be fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.engine.request import Decoder

T = TypeVar("T")


class SlotTable(Generic[T]):
    """Rows of active owners over the decoder's slots; row i is slot i."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.slots = decoder.slots
        self.owners: list[T] = []
        self._lengths = np.zeros(decoder.slots, np.int32)
        self._tokens = np.zeros(decoder.slots, np.int64)

    def __len__(self) -> int:
        return len(self.owners)

    def lengths(self, rows: int) -> NDArray[np.int32]:
        return self._lengths[:rows]

    def tokens(self, rows: int) -> NDArray[np.int64]:
        return self._tokens[:rows]

    def add(self, owners: Sequence[T], lengths: Sequence[int]) -> None:
        """Owners of the next slots, whose prompts of these lengths are now in the cache."""
        first, last = len(self.owners), len(self.owners) + len(owners)
        if last > self.slots:
            raise IndexError(f"slot {last - 1} of {self.slots}")
        self._lengths[first:last] = lengths
        self.owners.extend(owners)

    def feed(self, first: int, tokens: NDArray[np.int64]) -> None:
        """Set the token that each row from `first` on gets in the next decode run."""
        self._tokens[first : first + len(tokens)] = tokens

    def hold(self, row: int, length: int) -> None:
        """Set how many tokens of a row count; what is cached behind them is to be overwritten."""
        self._lengths[row] = length

    def put(self, row: int, token: int) -> None:
        """Set the token that one row gets in the next decode run."""
        self._tokens[row] = token

    def fork(self, source: int, target: int, owner: T, common: int) -> None:
        """Give `owner` a copy of row `source` at `target`, a row to be overwritten or the next.

        Of the cached tokens the first `common` are known to be the same in both. Unchanged, but
        for what the target holds, when the copying raises.
        """
        if target >= self.slots:
            raise IndexError(f"slot {target} of {self.slots}")
        length = int(self._lengths[source])
        self._decoder.move(source, target, length, common)
        self._lengths[target] = length
        self.owners[target : target + 1] = [owner]

    def grow(self) -> None:
        """A decode run has put one more token of every row into the cache."""
        self._lengths[: len(self.owners)] += 1

    def pop(self) -> T:
        """Free the last row."""
        return self.owners.pop()

    def remove(self, row: int) -> T:
        """Free a row by moving the last one over it; unchanged when the move raises."""
        last = len(self.owners) - 1
        if row == last:
            return self.pop()
        self._decoder.move(last, row, int(self._lengths[last]))
        owner = self.owners[row]
        self._lengths[row] = self._lengths[last]
        self._tokens[row] = self._tokens[last]
        self.owners[row] = self.owners.pop()
        return owner

    def check(self) -> None:
        """Raise AssertionError when the table is inconsistent; tests call it after every step."""
        n = len(self.owners)
        assert n <= self.slots, f"{n} rows in {self.slots} slots"
        assert len({id(owner) for owner in self.owners}) == n, "an owner has two rows"
        lengths, tokens = self._lengths[:n], self._tokens[:n]
        assert ((lengths > 0) & (lengths < self._decoder.capacity)).all(), f"lengths {lengths}"
        assert ((tokens >= 0) & (tokens < self._decoder.vocabulary)).all(), f"tokens {tokens}"
