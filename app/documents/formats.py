"""The formats of documents: how each is named and read. Readers are imported when first used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePath
from types import MappingProxyType

from app.documents.units import Document
from app.errors import BadDocument, UnknownFormat


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    extensions: tuple[str, ...]
    media_types: tuple[str, ...]  # the first is that of an answer
    reader: str  # module and class

    def read(self, data: bytes) -> Document:
        if not data:
            raise BadDocument("file is empty")
        module, name = self.reader.split(":")
        document: Document = getattr(import_module(f"app.documents.{module}"), name)(data)
        return document


_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        one.name: one
        for one in (
            Format("text", (".txt", ".text"), ("text/plain",), "plain:PlainText"),
            Format("markdown", (".md", ".markdown"), ("text/markdown",), "markdown:MarkdownText"),
            Format("html", (".html", ".htm"), ("text/html",), "web:HtmlPage"),
            Format("srt", (".srt",), ("application/x-subrip",), "subtitles:Subtitles"),
            Format("po", (".po", ".pot"), ("text/x-gettext-translation",), "gettext:Catalog"),
            Format("docx", (".docx",), (_WORD,), "word:WordFile"),
        )
    }
)
_BY_EXTENSION = {extension: one for one in FORMATS.values() for extension in one.extensions}
EXTENSIONS = tuple(_BY_EXTENSION)
MEDIA_TYPES = tuple(one.media_types[0] for one in FORMATS.values())  # of answers


def format_of(filename: str, name: str = "") -> Format:
    """The format of that name, or else of the file name's ending."""
    if name:
        found = FORMATS.get(name.casefold()) or _BY_EXTENSION.get(f".{name.casefold()}")
        if found is None:
            raise UnknownFormat(
                f"format {name[:60]!r} is not known; known are {', '.join(FORMATS)}", param="format"
            )
        return found
    ending = PurePath(filename).suffix.casefold()
    if ending not in _BY_EXTENSION:
        raise UnknownFormat(
            f"file: {filename[-60:]!r} has none of the endings {', '.join(EXTENSIONS)}; give the "
            "format",
            param="file",
        )
    return _BY_EXTENSION[ending]


def translated_name(filename: str, target: str) -> str:
    """NAME.TARGET.EXT, without the folders that a client may tell."""
    path = PurePath(filename.replace("\\", "/").rstrip("/"))
    return f"{path.stem or 'document'}.{target}{path.suffix}"
