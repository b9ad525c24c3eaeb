"""Plain text: every line with words is a unit, without the bullet or number before it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.documents.encoding import decode
from app.documents.units import Edits, Translated, Unit, has_letters

_BREAKS = re.compile(r"[\r\n]+")
_LINE = re.compile(r"(?:[ \t]*(?:[-*+\u2022\u2010-\u2015]|\d{1,3}[.)])[ \t]+)?([^\r\n]+)")


class PlainText:
    def __init__(self, data: bytes) -> None:
        self._decoded = decode(data)
        lines = _LINE.finditer(self._decoded.text)
        self._places = [line.span(1) for line in lines if has_letters([line[1]])]
        self.units = [Unit(self._decoded.text[start:end]) for start, end in self._places]

    def write(self, translations: Sequence[Translated]) -> bytes:
        edits = Edits(self._decoded.text)
        for (start, end), made in zip(self._places, translations, strict=True):
            edits.replace(start, end, _BREAKS.sub(" ", made.text))
        return self._decoded.encode(edits.done())
