"""HTML: every run of text between block elements is a unit, with its inline tags."""

from __future__ import annotations

from collections.abc import Sequence

from app.documents.encoding import decode
from app.documents.units import Edits, Translated, Unit
from app.text.markup import places


class HtmlPage:
    def __init__(self, data: bytes) -> None:
        self._decoded = decode(data)
        self._places = places(self._decoded.text, "html", "file")
        self.units = [Unit(self._decoded.text[a:b], "html") for a, b in self._places]

    def write(self, translations: Sequence[Translated]) -> bytes:
        edits = Edits(self._decoded.text)
        for (start, end), made in zip(self._places, translations, strict=True):
            edits.replace(start, end, made.text)
        return self._decoded.encode(edits.done())
