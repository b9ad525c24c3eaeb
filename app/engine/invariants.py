"""What always holds between two steps of the scheduler; tests check it after every one."""

from __future__ import annotations

from collections.abc import Iterable

from app.engine.kv import SlotTable
from app.engine.line import Line
from app.engine.prefixes import PrefixStore
from app.engine.sequence import Row, Sequence


def check_state(
    table: SlotTable[Row],
    waiting: Line[Sequence],
    reading: Iterable[Sequence],
    prefixes: PrefixStore | None,
    taken: int,
    attempts: int,
) -> None:
    """Raise AssertionError naming what is inconsistent."""
    table.check()
    if prefixes:
        prefixes.check(table.slots)
    owners = table.owners
    active = list(dict.fromkeys(row.sequence for row in owners))
    tokens = table.tokens(len(owners)).tolist()
    lengths = table.lengths(len(owners)).tolist()
    assert taken == sum(sequence.request.slots for sequence in active)
    assert taken <= table.slots, "more slots are promised than there are"
    assert not any(row.left for row in owners), "a row that was left holds a slot"
    assert len(owners) == sum(len(sequence.rows) for sequence in active)
    assert set(reading) == {s for s in active if s.reading}, "read on by nobody, or in vain"
    for sequence in active:
        assert sequence not in waiting, "both waiting and active"
        at = [owners.index(row) for row in sequence.rows]
        sequence.check([tokens[i] for i in at], [lengths[i] for i in at])
    for sequence in [*waiting, *active]:
        assert not sequence.ended, "an ended sequence holds a place"
        assert sequence.attempts <= attempts
