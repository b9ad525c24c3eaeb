"""Who enters the slots together, and who gives them back: choices that run nothing.

Waiting and running sequences flow in, in order; out comes which of them are read in one run, and
which batch sequences must give way so that interactive ones can start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from app.engine.sequence import Sequence

_RUN_TOKENS = 8  # what a prefill run costs beyond its tokens, in tokens: padding that pays


def fitting(line: Iterable[Sequence], room: int) -> list[Sequence]:
    """The first of the line, as far as there are slots for them: none passes another by."""
    found = []
    for sequence in line:
        room -= sequence.request.slots
        if room < 0:
            break
        found.append(sequence)
    return found


def similar(line: list[Sequence], max_tokens: int, chunk: int) -> list[Sequence]:
    """The first sequence and those of similar length, so that padding costs less than a run.

    Of each the first `chunk` tokens are read; together no more than `max_tokens`, padding and all,
    or the first alone.
    """
    size = min(len(line[0].prefix), chunk)
    group, longest = line[:1], size
    for other in sorted(line[1:], key=lambda s: abs(min(len(s.prefix), chunk) - size)):
        length, rows = min(len(other.prefix), chunk), len(group)
        high = max(longest, length)
        padding = high * (rows + 1) - longest * rows - length  # that this prompt would add
        if padding <= _RUN_TOKENS and high * (rows + 1) <= max_tokens:
            group.append(other)
            longest = high
    return group


def giving_way(
    interactive: Iterable[Sequence], running: Iterable[Sequence], room: int
) -> list[Sequence]:
    """Batch sequences whose slots let the interactive ones start, the least progress first.

    Each gives way once, so it comes to its end whatever else is asked of the server.
    """
    candidates = [s for s in running if s.batch and not s.gave_way]
    candidates.sort(key=lambda s: s.progress)
    count = 0
    for sequence in interactive:
        room -= sequence.request.slots
        more = count
        while room < 0 and more < len(candidates):
            room += candidates[more].request.slots
            more += 1
        if room < 0:
            break  # it would be in vain
        count = more
        if count == len(candidates):
            break
    return candidates[:count]


def culprit(fails: Callable[[int], bool], rows: int) -> int:
    """The last row of the shortest prefix that fails, by bisection; all rows together do.

    A run that succeeds writes what the repeated run will write again, so it harms nothing.
    """
    passing, failing = 0, rows
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if fails(middle):
            failing = middle
        else:
            passing = middle
    return failing - 1
