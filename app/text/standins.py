"""Words that a model copies, in place of what it would garble, and the way back.

A placeholder or URL was never in the training text: of 120 sentences in all directions the bundled
model kept none. Well-known names it keeps in two of three, with the n best of a beam in most
others (docs/LOG.md). `mask` puts a name for every group of protected words and takes marks out;
`unmask` finds the names in the output again and says which are lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.text.marks import Mark, place
from app.text.protect import PRIVATE, Protected

# As written with the Latin alphabet and in Chinese; the ones that survive most often first.
NAMES = (
    ("Boston", "波士顿"),
    ("Tom", "汤姆"),
    ("John", "约翰"),
    ("Mary", "玛丽"),
    ("Paris", "巴黎"),
    ("Australia", "澳大利亚"),
)
_WORD = re.compile(PRIVATE)
_BETWEEN = re.compile(r"[^\w\n]{0,3}")  # protected words with only this between are one group


@dataclass(frozen=True, slots=True)
class Masked:
    """`text` is for the model; `groups` are what each of the `names` stands for."""

    text: str
    names: tuple[tuple[str, str], ...]
    groups: tuple[str, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Unmasked:
    text: str  # with private characters, marks in their places
    lost: tuple[str, ...]  # groups that are missing or there twice


def mask(piece: Protected, language: str, turn: int = 0) -> Masked | None:
    """Stand-ins for the words, beginning with name number `turn`; None if names are too few."""
    bare, marks = _without_marks(piece)
    places = _groups(bare, marks)
    groups = tuple(bare[start:end] for start, end in places)
    order = [NAMES[(turn + i) % len(NAMES)] for i in range(len(NAMES))]
    free = [names for names in order if not any(name in bare for name in names)]
    if len(groups) > len(free):
        return None
    names = tuple(free[: len(groups)])
    parts: list[str] = []
    moved: list[Mark] = []
    at = length = taken = 0
    for (start, end), forms in zip(places, names, strict=True):
        taken = _shift(marks, taken, start, length - at, moved)
        name = forms[1] if language == "zh" else forms[0]
        parts += (bare[at:start], name)
        length += start - at + len(name)
        at = end
    _shift(marks, taken, len(bare), length - at, moved)
    parts.append(bare[at:])
    return Masked("".join(parts), names, groups, tuple(moved))


def unmask(masked: Masked, output: str) -> Unmasked:
    """The output with groups for names and with the marks."""
    found: list[tuple[int, int, str]] = []
    lost = []
    for forms, group in zip(masked.names, masked.groups, strict=True):
        matches = list(re.finditer(_pattern(forms), output))
        if len(matches) == 1:
            found.append((*matches[0].span(), group))
        else:
            lost.append(group)
    inserts = place(masked.text, output, masked.marks)
    parts: list[str] = []
    at = 0
    for start, end, text in sorted([*found, *((i, i, char) for i, char in inserts)],
                                   key=lambda x: x[:2]):  # fmt: skip
        parts += (output[at:start], text)
        at = max(at, end)
    return Unmasked("".join([*parts, output[at:]]), tuple(lost))


def segments(piece: Protected) -> list[str]:
    """A piece cut around its groups of protected words: text, group, text, ..., text."""
    parts: list[str] = []
    at = 0
    words = {char for char in piece.text if piece.is_word(char)}
    for i, char in enumerate(piece.text):
        if char in words:
            parts += (piece.text[at:i], char)
            at = i + 1
    return [*parts, piece.text[at:]]


def _without_marks(piece: Protected) -> tuple[str, list[Mark]]:
    kept: list[str] = []
    marks: list[Mark] = []
    for char in piece.text:
        if piece.is_mark(char):
            marks.append(Mark(len(kept), char, piece.span(char).place == "before"))
        else:
            kept.append(char)
    return "".join(kept), marks


def _groups(bare: str, marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """Where groups of protected words begin and end; no mark stands inside of one."""
    places = {mark.at for mark in marks}
    groups: list[tuple[int, int]] = []
    for match in _WORD.finditer(bare):
        start, end = match.span()
        if groups and _BETWEEN.fullmatch(bare, groups[-1][1], start):
            begin, former = groups[-1]
            if places.isdisjoint(range(former, end)):
                groups[-1] = begin, end
                continue
        groups.append((start, end))
    return groups


def _shift(
    marks: Sequence[Mark], first: int, end: int, by: int, moved: list[Mark]
) -> int:
    """Move the marks up to `end`; the number of the first one behind."""
    while first < len(marks) and marks[first].at <= end:
        mark = marks[first]
        moved.append(Mark(mark.at + by, mark.char, mark.before))
        first += 1
    return first


def _pattern(forms: tuple[str, str]) -> str:
    latin, chinese = forms
    return rf"(?<![^\W_]){latin}(?![^\W_])|{latin}(?=[\u4e00-\u9fff])|{chinese}"
