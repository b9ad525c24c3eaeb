"""DOCX: every paragraph of body, tables, text boxes, headers, footers and notes is a unit.

The parts with text are found by the package's content types and read with lxml; all other entries
of the archive are copied, and a part in which nothing was translated keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.documents.archive import Archive
from app.documents.paragraph import Paragraph, W
from app.documents.units import Translated, Unit
from app.errors import BadDocument

if TYPE_CHECKING:
    from lxml.etree import _Element

_TYPES = "application/vnd.openxmlformats-officedocument.wordprocessingml."
_MAIN = (f"{_TYPES}document.main+xml", "application/vnd.ms-word.document.macroEnabled.main+xml")
_OTHERS = tuple(f"{_TYPES}{n}+xml" for n in ("header", "footer", "footnotes", "endnotes"))
_CONTENT = "[Content_Types].xml"


class WordFile:
    def __init__(self, data: bytes) -> None:
        self._archive = Archive(data)
        self._parts = {name: self._archive.xml(name) for name in self._names()}
        if next(iter(self._parts.values())).tag != W + "document":
            raise BadDocument("file is not a DOCX document of the transitional kind")
        self._paragraphs = [
            (name, paragraph)
            for name, root in self._parts.items()
            for element in root.iter(W + "p")
            if (paragraph := Paragraph(element)).wanted
        ]
        self.units = [Unit(p.text, "html", p.fits) for _, p in self._paragraphs]

    def write(self, translations: Sequence[Translated]) -> bytes:
        changed: set[str] = set()
        for (name, paragraph), made in zip(self._paragraphs, translations, strict=True):
            if made.text != paragraph.text and paragraph.fits(made.text):
                paragraph.put(made.text)
                changed.add(name)
        return self._archive.rewritten({name: _bytes(self._parts[name]) for name in changed})

    def _names(self) -> list[str]:
        if _CONTENT not in self._archive.names:
            raise BadDocument(f"file is not a DOCX document: it has no {_CONTENT}")
        found: dict[str, str] = {}
        for entry in self._archive.xml(_CONTENT).iter("{*}Override"):
            found[entry.get("PartName", "").lstrip("/")] = entry.get("ContentType", "")
        main = [name for name, kind in found.items() if kind in _MAIN]
        if not main or main[0] not in self._archive.names:
            raise BadDocument("file is not a DOCX document: it has no word/document.xml")
        others = [name for name, kind in found.items() if kind in _OTHERS]
        return [main[0], *(name for name in others if name in self._archive.names)]


def _bytes(root: _Element) -> bytes:
    from lxml import etree

    tree = root.getroottree()
    data: bytes = etree.tostring(tree, xml_declaration=True, encoding="UTF-8", standalone=True)
    return data
