"""A paragraph of WordprocessingML as one unit of HTML, and a translation back in its runs.

Text of the paragraph's main formatting is plain; every stretch of another one, or in a hyperlink,
is an element `<x-N>`; line breaks and tabs are `<br>`; what else stands in a run (pictures, notes)
is a `<wbr>`, and what must not change (page numbers, formulas) a `<code>`. The tags of a
translation come back in their order, so text between two of them belongs where it stood between
them.
"""

from __future__ import annotations

import copy
import html
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.documents.units import has_letters

if TYPE_CHECKING:
    from lxml.etree import _Element

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_TAG = re.compile(r"<code id=\"\d+\">.*?</code>|<[^>]*>", re.DOTALL)
_NOT_IN_XML = re.compile("[^\t -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINES = re.compile(r"[\r\n]+")
_WRAPPERS = frozenset(
    W + n for n in ("hyperlink", "ins", "smartTag", "sdt", "sdtContent", "moveTo")
)
_BREAKS = frozenset(W + n for n in ("br", "tab", "cr", "ptab"))
_SILENT = frozenset(W + n for n in ("rPr", "lastRenderedPageBreak"))
_TRANSLATED_FIELDS = ("HYPERLINK", "TOC")

_Key = tuple[int, bytes]  # the element around the run (0: the paragraph), its formatting


@dataclass(slots=True)
class _Atom:
    """Text nodes of one formatting in a row, or one thing that is no text."""

    kind: str  # "text", "break", "mark" or "kept"
    element: _Element  # the run, or what stands in the paragraph
    key: _Key = (0, b"")
    nodes: list[_Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(node.text or "" for node in self.nodes)


class Paragraph:
    def __init__(self, element: _Element) -> None:
        self._element = element
        self._atoms = _merged(_shielded(list(_atoms(element, itertools.count(1)))))
        self._base = self._main_key()
        self.text = "".join(self._tagged(i, atom) for i, atom in enumerate(self._atoms))

    @property
    def wanted(self) -> bool:
        return has_letters(atom.text for atom in self._atoms if atom.kind == "text")

    def fits(self, text: str) -> bool:
        """Whether the tags of a translation are ours, in their order."""
        return _TAG.findall(text) == _TAG.findall(self.text)

    def put(self, text: str) -> None:
        """Write a translation that fits into the runs."""
        # the text before, between and behind tags; a text of its own element has two tags
        gaps = [html.unescape(part) for part in _TAG.split(text)]
        at = 0
        last: _Atom | None = None
        for atom in [*self._atoms, None]:
            if atom is not None and self._is_base(atom):
                _fill(atom, gaps[at])
                gaps[at] = ""
            else:
                if gaps[at]:
                    self._add(gaps[at], last, atom)
                if atom is not None and atom.kind == "text":
                    at += 1
                    _fill(atom, gaps[at])
                at += 1
            last = atom

    def _is_base(self, atom: _Atom) -> bool:
        return atom.kind == "text" and atom.key == self._base

    def _main_key(self) -> _Key | None:
        """The formatting of most characters outside of hyperlinks."""
        sizes: Counter[_Key] = Counter()
        for atom in self._atoms:
            if atom.kind == "text" and not atom.key[0]:
                sizes[atom.key] += len(atom.text)
        return sizes.most_common(1)[0][0] if sizes else None

    def _tagged(self, i: int, atom: _Atom) -> str:
        text = html.escape(atom.text, quote=False)
        if self._is_base(atom):
            return text
        return {
            "text": f"<x-{i}>{text}</x-{i}>",
            "break": f'<br id="{i}">',
            "mark": f'<wbr id="{i}">',
            "kept": f'<code id="{i}">{text}</code>',
        }[atom.kind]

    def _add(self, text: str, before: _Atom | None, behind: _Atom | None) -> None:
        """A run of the main formatting where there was none."""
        if not text.strip() and (before is None or behind is None):
            return
        near = before or behind
        assert near is not None  # a paragraph with words has one of them
        model = next((a for a in self._atoms if self._is_base(a)), None)
        run = near.element.makeelement(W + "r")
        if model is not None and (formatting := model.element.find(W + "rPr")) is not None:
            run.append(copy.deepcopy(formatting))
        node = run.makeelement(W + "t")
        run.append(node)
        _set(node, text)
        top = self._top(near.element)
        if near is before:
            top.addnext(run)
        else:
            top.addprevious(run)

    def _top(self, element: _Element) -> _Element:
        """The child of the paragraph that the element is in."""
        while (parent := element.getparent()) is not None and parent is not self._element:
            element = parent
        return element


def _atoms(parent: _Element, numbers: Iterator[int], place: int = 0) -> Iterator[_Atom]:
    for child in parent:
        if not isinstance(child.tag, str):
            continue
        if child.tag == W + "r":
            yield from _of_run(child, place)
        elif child.tag in _WRAPPERS:
            yield from _atoms(child, numbers, next(numbers))
        elif child.tag in (_M + "oMath", _M + "oMathPara", W + "fldSimple"):
            yield _Atom("kept", child, nodes=list(child.iter(W + "t")))


def _of_run(run: _Element, place: int) -> Iterator[_Atom]:
    from lxml import etree

    formatting = run.find(W + "rPr")
    look = b"" if formatting is None else etree.tostring(formatting, method="c14n")
    for child in run:
        if child.tag in _SILENT or not isinstance(child.tag, str):
            continue
        if child.tag == W + "t":
            yield _Atom("text", run, (place, look), [child])
        elif child.tag in _BREAKS:
            yield _Atom("break", run)
        elif child.tag in (W + "fldChar", W + "instrText"):
            yield _Atom(child.get(W + "fldCharType") or "instruction", run, nodes=[child])
        else:
            yield _Atom("mark", run)


def _shielded(atoms: list[_Atom]) -> list[_Atom]:
    """Fields as kept words, unless what they show is text of the document."""
    found: list[_Atom] = []
    opened: list[int] = []  # where among the found each field that is open begins
    for atom in atoms:
        if atom.kind == "begin":
            opened.append(len(found))
        if atom.kind != "end" or not opened:
            found.append(atom)
            continue
        start = opened.pop()
        inside = found[start:]
        instruction = "".join(a.text for a in inside if a.kind == "instruction").strip().upper()
        del found[start:]
        if instruction.startswith(_TRANSLATED_FIELDS):
            found.append(_Atom("mark", inside[0].element))
            found += [a for a in inside if a.kind in ("text", "break", "kept")]
            found.append(_Atom("mark", atom.element))
        else:
            shown = [node for a in inside if a.kind == "text" for node in a.nodes]
            found.append(_Atom("kept", atom.element, nodes=shown))
    others = ("text", "break", "kept")
    return [a if a.kind in others else _Atom("mark", a.element) for a in found]


def _merged(atoms: list[_Atom]) -> list[_Atom]:
    found: list[_Atom] = []
    for atom in atoms:
        last = found[-1] if found else None
        if last and atom.kind == last.kind == "text" and atom.key == last.key:
            last.nodes += atom.nodes
        elif last and atom.kind == last.kind == "mark":
            last.element = atom.element
        else:
            found.append(atom)
    return found


def _fill(atom: _Atom, text: str) -> None:
    """The first node takes all of the text."""
    for node in atom.nodes[1:]:
        node.text = ""
    _set(atom.nodes[0], text)


def _set(node: _Element, text: str) -> None:
    node.text = text = _NOT_IN_XML.sub("", _LINES.sub(" ", text))
    if text != text.strip():
        node.set(_SPACE, "preserve")
