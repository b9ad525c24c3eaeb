"""Logits of chosen columns: each row's own candidates, out of one product for all rows of a run.

The columns of the LM head that any of the rows needs stand side by side in one buffer, which the
graph multiplies by; new ones are appended as sequences come, and the buffer is made anew when it
is full. Each row is then given its own candidates' logits and sees no others. A column has the same
bits whatever stands beside it: integer products are exact, and a float product of at least two rows
and `least` columns adds up in one order.
In: candidates of rows, and the binding of a run. Out: `ListedLogits`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.bundle import ModelSpec
from app.engine.listed import ListedLogits
from app.engine.request import Candidates, HostLogits, Only
from app.graph import GraphSpec

# Float kernels take the columns of a thread in panels whose depth is another for 64 and fewer.
_PANEL: Final = 128
_ROOM: Final = 1.5  # of a new buffer, over what is needed at once
_KEPT: Final = 64  # candidates of sequences that have left, before their places are forgotten


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows of a run that nobody asked for, before and behind the others."""

    front: int = 0
    behind: int = 0

    def __add__(self, rows: int) -> int:
        return self.front + rows + self.behind


class Columns:
    """Some columns of the head: `values` (width, columns) with `scales`, or (columns, width)."""

    def __init__(self, table: NDArray[Any], scales: NDArray[np.float32] | None, least: int) -> None:
        """The whole head, (vocabulary, width), and in int8 its scales (vocabulary,)."""
        self._table, self._table_scales, self._least = table, scales, least
        self._where = np.full(len(table), -1, np.int64)  # the column of each id
        self._places: dict[Candidates, NDArray[np.int64]] = {}
        self._running: list[Candidates] = []
        self._shared = 0  # by how many candidates when it was last looked at
        self.count = 0
        self._allocate(least)

    def _allocate(self, size: int) -> None:
        width, kind = self._table.shape[1], self._table.dtype
        self.size = size
        by_column = self._table_scales is not None
        self.values = np.zeros((width, size) if by_column else (size, width), kind)
        self.scales = np.ones(size, np.float32) if by_column else None

    def places(self, wanted: Sequence[Candidates], running: bool) -> list[NDArray[np.int64]]:
        """Of each the columns of its ids; `running`: these are all the rows that decode now."""
        if running:
            self._running = list(dict.fromkeys(wanted))
        fewer = 2 * len(self._running) < self._shared
        if fewer or any(one not in self._places for one in wanted):
            self._cover(dict.fromkeys([*self._running, *wanted]))
        return [self._places[one] for one in wanted]

    def _cover(self, live: Collection[Candidates]) -> None:
        """Columns for all of these; anew where they do not fit, or the buffer is much too large."""
        self._shared = len(live)
        needed = self._union(live)
        missing = needed[self._where[needed] < 0]
        room = max(-(-int(needed.size * _ROOM) // _PANEL) * _PANEL, self._least)
        if self.count + missing.size > self.size or self.size > 2 * room:
            missing, self.count = needed, 0
            self._where[:] = -1
            self._places.clear()
            self._allocate(room)
        elif len(self._places) > _KEPT + 2 * len(live):
            self._places.clear()
        self._append(missing)
        for one in live:
            self._places[one] = self._where[one.ids]

    def _union(self, candidates: Iterable[Candidates]) -> NDArray[np.int64]:
        marked = np.zeros(len(self._where), np.bool_)
        for one in candidates:
            marked[one.ids] = True
        return np.flatnonzero(marked)

    def _append(self, ids: NDArray[np.int64]) -> None:
        first, last = self.count, self.count + ids.size
        if self.scales is None or self._table_scales is None:
            self.values[first:last] = self._table[ids]
        else:
            self.values[:, first:last] = self._table[ids].T
            self.scales[first:last] = self._table_scales[ids]
        self._where[ids] = np.arange(first, last)
        self.count = last


class Listing:
    """Runs of one session of which some rows have candidates."""

    def __init__(
        self,
        session: ort.InferenceSession,
        names: GraphSpec,
        model: ModelSpec,
        binding: ort.IOBinding,
        least: int,
    ) -> None:
        """`binding`: of any run, by which the head is read."""
        assert names.listing is not None
        self._session, self._names, self._spec = session, names, names.listing
        self._vocabulary = model.vocabulary
        spec, shape = self._spec, (model.vocabulary, model.width)
        eight = spec.table_scales is not None
        table: NDArray[Any] = np.empty(shape, np.int8 if eight else np.float32)
        scales = np.empty((model.vocabulary, 1), np.float32)
        _bind(binding, spec.table_ids, ids := np.arange(model.vocabulary, dtype=np.int64))
        _bind_output(binding, spec.table_rows, table)
        if spec.table_scales is not None:
            _bind_output(binding, spec.table_scales, scales)
        session.run_with_iobinding(binding)
        del ids
        self._columns = Columns(table, scales[:, 0].copy() if eight else None, least)

    def run(
        self, binding: ort.IOBinding, only: Only, padding: Padding, decodes: bool
    ) -> ListedLogits:
        """Run what is bound, but for the head; of each row the logits that it asks for."""
        columns, spec, rows = self._columns, self._spec, len(only)
        wanted = [one for one in only if one is not None]
        places = columns.places(wanted, decodes)
        at = [padding.front + row for row, one in enumerate(only) if one is not None]
        listed = np.array(at if len(at) != 1 else at * 2, np.int64)  # see the module's docstring
        some = len(at) < rows
        whole = np.array([padding + rows if some else 0], np.int64)
        _bind(binding, spec.whole_rows, whole)
        _bind(binding, spec.listed_rows, listed)
        _bind(binding, spec.columns, columns.values)
        if columns.scales is not None:
            _bind(binding, str(spec.column_scales), columns.scales)
        every = (
            host_logits(binding, self._names, rows, self._vocabulary, padding)
            if some
            else host_logits(binding, self._names, 0, self._vocabulary, Padding())
        )
        among = np.empty((listed.size, columns.size), np.float32)
        _bind_output(binding, spec.listed_logits, among)
        self._session.run_with_iobinding(binding)
        return ListedLogits(only, list(map(np.take, among, places)), every)


def host_logits(
    binding: ort.IOBinding, names: GraphSpec, rows: int, vocabulary: int, padding: Padding
) -> HostLogits:
    """What a run's logits go to, of that many rows; bound, with the sums where the graph has them.

    New each time: an answer must not change under the caller at the next run.
    """
    own = slice(padding.front, padding.front + rows)
    every = np.empty((padding + rows, vocabulary), np.float32)
    _bind_output(binding, names.logits, every)
    logits = every[own].view(HostLogits)
    if names.best_sums is not None:
        sums = np.empty(padding + rows, np.float32)
        _bind_output(binding, names.best_sums, sums)
        logits.sums = sums[own]
    return logits


def _bind(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def least_columns(threads: int, rows: int) -> int:
    """As few as a buffer may have so that its products do not depend on how many there are."""
    return _PANEL * max(threads, -(-(rows + 1) // _PANEL))
