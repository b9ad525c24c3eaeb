"""The slot table: rows stay contiguous, and contents follow their owner."""

from __future__ import annotations

import numpy as np
import pytest

from app.engine.kv import SlotTable
from tests.fakes import FakeDecoder, RunFailed


def filled(names: str, decoder: FakeDecoder) -> SlotTable[str]:
    table: SlotTable[str] = SlotTable(decoder)
    lengths = [3 + i for i in range(len(names))]
    decoder.prefill(0, [[i + 1] * length for i, length in enumerate(lengths)])
    table.add(list(names), lengths)
    table.feed(0, np.arange(len(names)) + 20)
    return table


def test_the_last_row_fills_the_gap() -> None:
    decoder = FakeDecoder(slots=5)
    table = filled("abcde", decoder)
    assert table.remove(1) == "b"
    assert table.owners == ["a", "e", "c", "d"]
    assert table.lengths(4).tolist() == [3, 7, 5, 6]
    assert table.tokens(4).tolist() == [20, 24, 22, 23]
    assert decoder.moved == 1
    assert table.remove(3) == "d" and decoder.moved == 1, "the last row needs no move"
    table.check()


def test_a_failed_move_changes_nothing() -> None:
    def hook(phase: str, call: int) -> None:
        if phase == "move":
            raise RunFailed

    decoder = FakeDecoder(slots=3, hook=hook)
    table = filled("abc", decoder)
    with pytest.raises(RunFailed):
        table.remove(0)
    assert table.owners == ["a", "b", "c"]
    assert table.lengths(3).tolist() == [3, 4, 5]
    assert table.pop() == "c"
    table.check()


def test_no_more_rows_than_slots() -> None:
    table = filled("ab", FakeDecoder(slots=2))
    with pytest.raises(IndexError, match="slot 2 of 2"):
        table.add(["c"], [3])


@pytest.mark.parametrize("harm", ["twice", "length", "token"])
def test_the_checker_sees(harm: str) -> None:
    table = filled("ab", FakeDecoder(slots=2))
    if harm == "twice":
        table.owners[1] = table.owners[0]
    elif harm == "length":
        table.lengths(2)[1] = 64
    else:
        table.tokens(2)[0] = -1
    with pytest.raises(AssertionError):
        table.check()
