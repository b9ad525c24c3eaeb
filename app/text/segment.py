"""Cuts a text into pieces that a sentence-level model can translate, and puts it together again.

Line breaks always cut, and so do tabs and three or more spaces, which set columns; between these
sentencex finds the sentences; a sentence over the limit is cut further, near its middle, at clause
punctuation, else at white space, else between characters. Nothing is lost: gaps and pieces put
together in turn are the input, character by character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sentencex

from app.text.protect import Protected

_BREAKS = re.compile("([\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+| {3,})")
_CLAUSE = re.compile(r"[,;:)\]]\s+|[，；：、。！？…）】]+[”’」』\"]*|\s[-–—]+\s")
_SPACE = re.compile(r"\s+")
_JOINER = "\u200d"
_EMOJI_MODIFIERS = range(0x1F3FB, 0x1F400)
# sentencex ends a sentence behind these, but they only begin one
_TITLES = re.compile(r"(?:^|[\s(«„“\"'’])(?:M|MM|Mme|Mlle|Dr|Pr|Prof|Mgr|Ste?)\.\s+$")
_ENUMERATION = re.compile(r"^\W*(?:\d{1,3}|[A-Za-z])[.)]\s*$")
_WITHOUT_SPACES = frozenset({"zh", "yue", "wuu", "lzh", "ja"})


@dataclass(frozen=True, slots=True)
class Layout:
    """A text as gaps[0] + pieces[0] + gaps[1] + ... + pieces[-1] + gaps[-1].

    Pieces are not empty and neither begin nor end with white space; gaps are white space or "".
    """

    gaps: tuple[str, ...]
    pieces: tuple[str, ...]

    def join(self, outputs: Sequence[str | None], source: str, target: str) -> str:
        """The text with outputs in place of pieces; None keeps a piece as it is."""
        parts = [self.gaps[0]]
        for i, (piece, output) in enumerate(zip(self.pieces, outputs, strict=True)):
            parts.append(piece if output is None else output)
            parts.append(self.gap_after(i, outputs, source, target))
        return "".join(parts)

    def gap_after(self, i: int, outputs: Sequence[str | None], source: str, target: str) -> str:
        """The gap behind piece i by the habits of the target language.

        Only gaps within a line change, and only beside a translated piece.
        """
        gap = self.gaps[i + 1]
        if i + 1 == len(self.pieces) or (outputs[i] is None and outputs[i + 1] is None):
            return gap
        if not spaced(source) and spaced(target):
            return " " if gap in ("", "\u3000") else gap
        if spaced(source) and not spaced(target) and gap in (" ", "  "):
            return ""
        return gap


def spaced(language: str) -> bool:
    """Whether the language puts spaces between words and sentences."""
    return language.partition("-")[0] not in _WITHOUT_SPACES


def translatable(piece: str) -> bool:
    """Pieces without letters (numbers, symbols, emoji) are the same in every language."""
    return any(char.isalpha() for char in piece)


def layout(text: str, language: str, fits: Callable[[str], bool]) -> Layout:
    """Cut `text`, which is in `language`, into pieces that fit."""
    gaps = [""]
    pieces: list[str] = []
    for i, line in enumerate(_BREAKS.split(text)):
        if i % 2:  # the breaks themselves
            gaps[-1] += line
            continue
        for sentence in sentences(line, language):
            for raw in _shorten(sentence, fits):
                body = raw.strip()
                if not body:
                    gaps[-1] += raw
                    continue
                start = raw.index(body)
                gaps[-1] += raw[:start]
                pieces.append(body)
                gaps.append(raw[start + len(body) :])
    return Layout(tuple(gaps), tuple(pieces))


def cut(text: Protected, language: str, fits: Callable[[str], bool]) -> Layout:
    """Cut a protected text: its marks are not seen by `fits` and do not part sentences.

    Those between two pieces go to the end of the former, from the first on that belongs to the word
    behind it to the beginning of the next. A text of marks and white space has no piece.
    """
    marks: list[tuple[int, str]] = []
    kept: list[str] = []
    for char in text.text:
        if text.is_mark(char):
            marks.append((len(kept), char))
        else:
            kept.append(char)
    bare = layout("".join(kept), language, fits)
    if not marks or not bare.pieces:
        return bare
    pieces: list[str] = []
    held = at = 0
    for i, piece in enumerate(bare.pieces):
        at += len(bare.gaps[i])
        until = at + len(piece)
        parts: list[str] = []
        last = at
        while held < len(marks) and marks[held][0] < until:
            place, char = marks[held]
            parts += (piece[last - at : max(place, last) - at], char)
            last = max(place, last)
            held += 1
        parts.append(piece[last - at :])
        behind = until + len(bare.gaps[i + 1])
        final = i + 1 == len(bare.pieces)
        while held < len(marks) and marks[held][0] <= behind and (
            final or text.span(marks[held][1]).place == "after"
        ):
            parts.append(marks[held][1])
            held += 1
        pieces.append("".join(parts))
        at = until
    return Layout(bare.gaps, tuple(pieces))


def sentences(line: str, language: str) -> list[str]:
    """The sentences of one line, each with the white space that follows it."""
    if not line.strip():
        return [line] if line else []
    found = list(sentencex.segment(language.partition("-")[0], line))
    if "".join(found) != line:  # never seen, yet losing text is worse than a long piece
        return [line]
    result: list[str] = []
    for sentence in found:
        if result and (_TITLES.search(result[-1]) or _ENUMERATION.match(result[-1])):
            result[-1] += sentence
        else:
            result.append(sentence)
    return result


def _shorten(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Parts of `text` that fit, in order; together they are `text`."""
    result: list[str] = []
    todo = [text]
    while todo:
        part = todo.pop()
        if len(part.strip()) < 2 or fits(part.strip()):
            result.append(part)
            continue
        at = _cut(part)
        todo += [part[at:], part[:at]]
    return result


def _cut(text: str) -> int:
    """Where to cut a text that is too long: 0 < position < len(text)."""
    middle = len(text) // 2
    quarter = len(text) // 4
    for pattern in (_CLAUSE, _SPACE):
        ends = [m.end() for m in pattern.finditer(text, quarter, len(text) - quarter)]
        if ends:
            return min(ends, key=lambda end: abs(end - middle))
    at = middle
    while at > max(quarter, 1) and _inside_character(text, at):
        at -= 1
    return at if at > 0 else middle


def _inside_character(text: str, at: int) -> bool:
    """Whether a cut at `at` would tear a base character from its marks."""
    char = text[at]
    return (
        unicodedata.category(char).startswith("M")
        or char == _JOINER
        or text[at - 1] == _JOINER
        or ord(char) in _EMOJI_MODIFIERS
    )
