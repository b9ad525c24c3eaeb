"""ZIP archives from strangers: bounds are checked before anything is unpacked.

What an archive promises to unpack to is bounded in all and by entry, and so is how much smaller it
is packed; the library cuts off what is longer than promised. XML is read without entities, document
types and network.
"""

from __future__ import annotations

import copy
import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from app.errors import BadDocument

if TYPE_CHECKING:
    from lxml.etree import _Element

MAX_ENTRIES = 2000
MAX_BYTES = 64 * 2**20  # unpacked, in all
MAX_XML_BYTES = 16 * 2**20  # of the parts that are read as XML
MAX_RATIO = 100  # of entries over a mebibyte

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class Archive:
    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _BROKEN as error:
            raise BadDocument(f"file is not a ZIP archive, or is cut off: {error}") from None
        entries = self._zip.infolist()
        if len(entries) > MAX_ENTRIES:
            raise BadDocument(f"file has {len(entries)} entries, at most {MAX_ENTRIES} are read")
        total = 0
        for entry in entries:
            total += entry.file_size
            if entry.flag_bits & 1:
                raise BadDocument("file is encrypted")
            if entry.file_size > 2**20 and entry.file_size > MAX_RATIO * entry.compress_size:
                raise BadDocument(f"file: {entry.filename[:60]!r} is compressed suspiciously well")
        if total > MAX_BYTES:
            raise BadDocument(
                f"file unpacks to {total} bytes, at most {MAX_BYTES} are read"
            )
        self._xml_bytes = 0
        self.names = frozenset(entry.filename for entry in entries)

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except _BROKEN as error:
            raise BadDocument(f"file: {name[:60]!r} is damaged: {error}") from None

    def xml(self, name: str) -> _Element:
        self._xml_bytes += self._zip.getinfo(name).file_size
        if self._xml_bytes > MAX_XML_BYTES:
            raise BadDocument(f"file has more than {MAX_XML_BYTES} bytes of XML")
        return parse_xml(self.read(name), name)

    def rewritten(self, parts: Mapping[str, bytes]) -> bytes:
        """The archive with other contents for some of its entries."""
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
            for entry in self._zip.infolist():
                data = parts.get(entry.filename)
                data = self.read(entry.filename) if data is None else data
                target.writestr(copy.copy(entry), data)  # writing changes the entry
        return made.getvalue()


def parse_xml(data: bytes, name: str) -> _Element:
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise BadDocument(f"file: {name[:60]!r} has a document type, which is refused")
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise BadDocument(f"file: {name[:60]!r} is not valid XML: {str(error)[:120]}") from None
    if root.getroottree().docinfo.doctype:
        raise BadDocument(f"file: {name[:60]!r} has a document type, which is refused")
    return root
