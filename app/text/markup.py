"""HTML and XML: what is text for a translator, and what comes back byte for byte.

A document flows in; literal text and units flow out in turn, all of it in order. A unit is a run of
text between block elements, in which inline tags are marks and untranslated elements (code,
translate="no") are protected words. Tags are found by the rules of the HTML standard's tokenizer,
over positions, so that nothing is ever written anew; time is linear in the document's length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from app.errors import InvalidField
from app.text.protect import Builder, Kind, Place, Protected


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


MAX_DEPTH = 500  # elements inside each other
_TOKEN = re.compile(
    r"""<(?:
      (?P<other> !--(?:-?>|.*?(?:--!?>|\Z)) | !\[CDATA\[.*?(?:\]\]>|\Z)
        | [!?][^>]*(?:>|\Z) | /(?![A-Za-z])[^>]*(?:>|\Z))
    | (?P<end>/?)(?P<name>[A-Za-z][^\s/>]*)
      (?P<attributes>(?:[^>=]++|=\s*+(?:"[^"]*"|'[^']*')?+)*+)>
    )""",
    re.VERBOSE | re.DOTALL,
)
_BEGINS = re.compile(r"<(?=[A-Za-z/!?])")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_KEPT = re.compile(
    r"""(?:^|\s)(?:its:)?translate\s*=\s*(?:"no"|'no'|no(?=[\s/]|$))"""
    r"""|(?:^|\s)class\s*=\s*(?:"[^"]*\bnotranslate\b|'[^']*\bnotranslate\b|notranslate(?=[\s/]|$))""",
    re.IGNORECASE,
)
_BLOCKS = _set(
    "address article aside audio base blockquote body br button canvas caption center col colgroup "
    "dd details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset "
    "h1 h2 h3 h4 h5 h6 head header hgroup hr html iframe legend li link main map menu meta nav "
    "noframes noscript object ol optgroup option p param picture pre script search section select "
    "source style summary table tbody td template textarea tfoot th thead title tr track ul "
    "video xmp"
)
_VOID = _set(
    "area base br col embed frame hr img input link meta param source track wbr"
)
_RAW = _set("iframe noembed noframes script style textarea xmp")
_UNTRANSLATED = _RAW | _set("code kbd math pre samp svg var")
# An end tag may be left out: another one of these begins where it ends.
_OPTIONAL = _set("colgroup dd dt li option p rp rt tbody td tfoot th thead tr")


@dataclass(slots=True)
class _Token:
    kind: Literal["text", "start", "end", "empty", "other"]
    start: int
    end: int
    name: str = ""
    attributes: str = ""
    partner: int = -1  # of a start tag, the number of the token that ends its element
    inline: bool = False


@dataclass(slots=True)
class _Open:
    at: int  # number of its token
    name: str
    children: list[int] = field(default_factory=list)
    mixed: bool = False  # it has text of its own


def parse(document: str, form: Literal["html", "xml"], param: str) -> list[str | Protected]:
    """Literal text and units; put together, what they stand for is the document."""
    tokens = list(_tokens(document, form))
    _pair(document, tokens, form, param)
    return _Reader(document, form, param).read(tokens)


def places(document: str, form: Literal["html", "xml"], param: str) -> list[tuple[int, int]]:
    """Where the units stand; each alone is a document of one unit."""
    tokens = list(_tokens(document, form))
    _pair(document, tokens, form, param)
    reader = _Reader(document, form, param)
    reader.read(tokens)
    return reader.places


def escape(text: str) -> str:
    """Plain text as markup."""
    return html.escape(text, quote=False)


def _tokens(document: str, form: str) -> Iterator[_Token]:
    at = text = 0
    while begin := _BEGINS.search(document, at):
        match = _TOKEN.match(document, begin.start())
        if match is None:
            break  # a tag that never ends: nothing behind it can be one
        if match.start() > text:
            yield _Token("text", text, match.start())
        at = text = match.end()
        if match["other"] is not None:
            yield _Token("other", match.start(), at)
            continue
        name = match["name"] if form == "xml" else match["name"].lower()
        attributes = match["attributes"] or ""
        empty = name in _VOID if form == "html" else attributes.endswith("/")
        kind: Literal["start", "end", "empty"]
        kind = "end" if match["end"] else "empty" if empty else "start"
        yield _Token(kind, match.start(), at, name, attributes)
        if form == "html" and kind == "start" and name in _RAW:
            close = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(document, at)
            end = close.start() if close else len(document)
            if end > at:
                yield _Token("other", at, end)
            at = text = end
    if text < len(document):
        yield _Token("text", text, len(document))


def _pair(document: str, tokens: list[_Token], form: str, param: str) -> None:
    """Find each element's end and whether its tags are inline."""
    stack = [_Open(-1, "")]
    for i, token in enumerate(tokens):
        if token.kind == "text":
            text = document[token.start : token.end]
            stack[-1].mixed = stack[-1].mixed or any(map(str.isalpha, text))
        elif token.kind in ("start", "empty"):
            if form == "html" and token.name in _OPTIONAL and stack[-1].name == token.name:
                _close(stack.pop(), i, tokens, form)
            stack[-1].children.append(i)
            if token.kind == "start":
                stack.append(_Open(i, token.name))
                if len(stack) > MAX_DEPTH + 1:
                    raise InvalidField(
                        f"{param} has more than {MAX_DEPTH} elements inside each other", param=param
                    )
        elif token.kind == "end":
            token.inline = form == "html" and token.name not in _BLOCKS
            if any(one.name == token.name for one in stack[1:]):
                while (last := stack.pop()).name != token.name:
                    _close(last, i, tokens, form)
                _close(last, i, tokens, form)
                tokens[last.at].partner = i
    while stack:
        _close(stack.pop(), len(tokens), tokens, form)


def _close(last: _Open, i: int, tokens: list[_Token], form: str) -> None:
    """An element has ended before token i: now it is known which of its children are inline."""
    if last.at >= 0:
        tokens[last.at].partner = i - 1 if i > last.at + 1 else last.at
    for child in last.children:
        inline = last.mixed if form == "xml" else tokens[child].name not in _BLOCKS
        tokens[child].inline = inline
        if tokens[child].kind == "start" and form == "xml":
            end = tokens[child].partner
            if tokens[end].kind == "end":
                tokens[end].inline = inline


class _Reader:
    """Goes through the tokens and gathers units."""

    def __init__(self, document: str, form: Literal["html", "xml"], param: str) -> None:
        self._document = document
        self._form = form
        self._param = param
        self._parts: list[str | Protected] = []
        self._literal = 0  # where literal text that is not told yet begins
        self._begin = -1  # where the current unit begins; -1: there is none
        self._builder = Builder(param)
        self._letters = False
        self.places: list[tuple[int, int]] = []

    def read(self, tokens: list[_Token]) -> list[str | Protected]:
        i = 0
        while i < len(tokens):
            token = tokens[i]
            if token.kind == "start" and self._untranslated(token):
                i = max(i, token.partner)
                if token.inline:
                    self._span(token, tokens[i].end, "code")
                else:
                    self._flush(token.start)
            elif token.kind == "text":
                self._text(token)
            elif token.kind == "other" or token.inline:
                self._span(token, token.end)
            else:
                self._flush(token.start)
            i += 1
        self._flush(len(self._document))
        if self._literal < len(self._document):
            self._parts.append(self._document[self._literal :])
        return self._parts

    def _untranslated(self, token: _Token) -> bool:
        named = self._form == "html" and token.name in _UNTRANSLATED
        return named or _KEPT.search(token.attributes) is not None

    def _text(self, token: _Token) -> None:
        raw = self._document[token.start : token.end]
        self._open(token.start)
        self._letters = self._letters or any(map(str.isalpha, raw))
        self._builder.scan(_SPACE.sub(" ", raw), html.unescape, tags=False)

    def _span(self, token: _Token, end: int, kind: Kind = "tag") -> None:
        self._open(token.start)
        place: Place = "after" if token.kind == "end" else "before"
        raw = self._document[token.start : end]
        self._builder.span(raw, kind, "word" if kind == "code" else place)

    def _open(self, start: int) -> None:
        if self._begin < 0:
            self._begin = start

    def _flush(self, end: int) -> None:
        """The unit, if it has words, ends here; else it stays literal."""
        if self._letters:
            start, end = self._trimmed(self._begin, end)
            self.places.append((start, end))
            self._parts.append(self._document[self._literal : start])
            unit = self._builder.done()
            self._parts.append(Protected(unit.text.strip(" "), unit.spans, end - start))
            self._literal = end
        self._begin, self._letters = -1, False
        self._builder = Builder(self._param)

    def _trimmed(self, start: int, end: int) -> tuple[int, int]:
        """Without white space at both ends, which stays as it is."""
        text = self._document[start:end]
        return end - len(text.lstrip(" \t\n\r\f")), start + len(text.rstrip(" \t\n\r\f"))
