"""Items cut into pieces for the model, and put together again from what was made of them.

An item is literal text and units in turn: a plain text is one unit, of marked-up text every run of
text between block elements is one. A unit is laid out as sentences; those that need translation are
pieces. What is around and between them comes back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from app.errors import AppError
from app.tasks.options import Format
from app.text.detect import Detection
from app.text.glossary import Glossary
from app.text.markup import escape, parse
from app.text.protect import Protected, protect
from app.text.segment import Layout, cut, translatable


@dataclass(frozen=True)
class Piece:
    """A sentence in the model's script, with private characters for what is protected in it."""

    text: Protected
    param: str  # the request's field that it came from
    languages: tuple[str, str]
    tokens: int
    forced: tuple[int, ...] = ()
    glossary: Glossary = Glossary()
    via: str | None = None  # a language that it is translated to first

    @property
    def legs(self) -> tuple[tuple[str, str], ...]:
        """The translations that it takes, one after the other."""
        source, target = self.languages
        return ((source, self.via), (self.via, target)) if self.via else (self.languages,)

    @cached_property
    def bare(self) -> str:
        return bare(self.text, self.text.text)


@dataclass(frozen=True, slots=True)
class Unit:
    text: Protected
    layout: Layout
    pieces: tuple[int | None, ...]  # the number of each in the request; None: kept as it is

    def join(self, made: Mapping[int, str], item: Item, target: str) -> str:
        """The unit of the item with what was made of its pieces."""
        outputs = [None if i is None else made[i] for i in self.pieces]
        kept = [self.text.restore(piece, item.escape) for piece in self.layout.pieces]
        return Layout(self.layout.gaps, tuple(kept)).join(outputs, item.source, target)


@dataclass(frozen=True, slots=True)
class Item:
    """`raw` comes back where there are no pieces; with an `error` there are none."""

    raw: str
    source: str
    candidates: tuple[Detection, ...]  # the languages that it may be in; none if that was told
    marked: bool  # HTML or XML
    parts: tuple[str | Unit, ...]
    error: AppError | None = None

    @property
    def escape(self) -> Callable[[str], str]:
        return escape if self.marked else str

    @property
    def pieces(self) -> list[int]:
        units = [part for part in self.parts if isinstance(part, Unit)]
        return [i for unit in units for i in unit.pieces if i is not None]

    def join(self, made: Mapping[int, str], target: str) -> str:
        """The item with what was made of its pieces."""
        return "".join(
            part if isinstance(part, str) else part.join(made, self, target)
            for part in self.parts
        )


def read(text: str, form: Format, param: str) -> list[str | Protected]:
    """Literal text and units in turn, not laid out yet."""
    return [protect(text, param)] if form == "text" else parse(text, form, param)


def lay_out(text: Protected, language: str, fits: Callable[[str], bool]) -> Layout:
    def short(piece: str) -> bool:
        return not translatable(piece) or fits(piece)

    return cut(text, language, short)


def bare(text: Protected, piece: str) -> str:
    """A piece as its reader sees the words of it: without marks, gaps for what is protected."""
    parts = []
    for char in piece:
        if text.is_word(char):
            span = text.span(char)
            parts.append(span.raw if span.kind in ("number", "term") else " ")
        elif not text.is_mark(char):
            parts.append(char)
    return "".join(parts)
