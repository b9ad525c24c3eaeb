"""What every format gives and takes: units of text in, their translations out.

A document is read once; its units are the texts that a translator may change, in order, each plain
text or HTML. `write` takes a translation for each and gives the file's bytes; a translation that is
the unit's own text leaves that part of the file as it was, byte for byte.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True)
class Unit:
    """`fits` says whether a translation can be put back."""

    text: str
    format: Literal["text", "html"] = "text"
    fits: Callable[[str], bool] = lambda _: True

    @property
    def plain(self) -> str:
        """Without tags, to detect a language by."""
        return html.unescape(_TAG.sub(" ", self.text)) if self.format == "html" else self.text


@dataclass(frozen=True, slots=True)
class Translated:
    text: str
    doubtful: bool = False


class Document(Protocol):
    @property
    def units(self) -> Sequence[Unit]: ...

    def write(self, translations: Sequence[Translated]) -> bytes:
        """The file with a translation in place of each unit."""
        ...


class Edits:
    """Replacements of stretches of a text, told in order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._parts: list[str] = []
        self._at = 0

    def replace(self, start: int, end: int, text: str) -> None:
        self._parts += (self._text[self._at : start], text)
        self._at = end

    def done(self) -> str:
        return "".join(self._parts) + self._text[self._at :]


def has_letters(texts: Iterable[str]) -> bool:
    return any(char.isalpha() for text in texts for char in text)
