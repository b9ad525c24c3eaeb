"""Bytes of a text file as text and back: UTF-8, with or without BOM, or UTF-16 with BOM."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from app.errors import BadDocument

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    text: str
    bom: bytes
    encoding: str

    def encode(self, text: str) -> bytes:
        """Another text in the same way."""
        return self.bom + text.encode(self.encoding)


def decode(data: bytes) -> Decoded:
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise BadDocument("file is UTF-32: send UTF-8, or UTF-16 with a byte order mark")
    bom, encoding = next((found for found in _BOMS if data.startswith(found[0])), (b"", "utf-8"))
    try:
        text = data[len(bom) :].decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16" if encoding.startswith("utf-16") else "UTF-8"
        raise BadDocument(
            f"file is not {name} (byte {len(bom) + error.start}): send UTF-8, or UTF-16 with a "
            "byte order mark"
        ) from None
    if "\0" in text:
        raise BadDocument("file has NUL bytes: it is not a text file")
    return Decoded(text, bom, encoding)
