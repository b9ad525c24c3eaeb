"""Finds what a translation must not change and sets it aside: one private character for each.

A text flows in, a `Protected` flows out: the same text in which every placeholder, URL, address,
tag and emoji is a single character of Unicode's private planes 15 and 16, and the table of what
they stand for. Sentences are cut and put together with these characters in them, and `Protected.
restore` writes the originals back. What stands for a word must get a stand-in before a model sees
it (`app.text.standins`); the rest sticks to the word before or behind it (`app.text.marks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from app.errors import TooLong

Kind = Literal["placeholder", "url", "email", "code", "emoji", "tag", "symbol", "term", "number"]
# "word": takes the place of a word. "before", "after": sticks to the word behind or before it.
Place = Literal["word", "before", "after"]

_FIRST, _LAST = 0xF0000, 0x10FFFF
PRIVATE = f"[{chr(_FIRST)}-{chr(_LAST)}]"
_PRIVATE = re.compile(PRIVATE)

_PLACEHOLDER = r"""
    \{\{[^{}\n]{0,80}\}\}                                   # {{x}}
  | \$\{[^{}\n]{1,80}\}                                     # ${VAR}
  | \#?\{[A-Za-z0-9_.:!\[\]\-]{0,80}\}                      # {name} {0} {0:.2f} #{x} {}
  | %\([A-Za-z0-9_.\-]{1,80}\)[-+ 0\#]{0,4}\d{0,4}(?:\.\d{1,4})?[a-zA-Z]   # %(x)d
  | %\{[A-Za-z0-9_.\-]{1,80}\}                              # %{name}
  | %%[A-Za-z_]{1,80}%%
  | %\d{1,3}\$[-+ 0\#]{0,4}\d{0,4}(?:\.\d{1,4})?(?:hh?|ll?|[LqjzT])?[diouxXeEfFgGaAcspn@]  # %1$s
  | %[-+0\#]{0,4}\d{0,4}(?:\.\d{1,4})?(?:hh?|ll?|[Lqjz])?[diouxXeEfFgGcsp@](?![A-Za-z])  # %s %.2f
  | %[A-Za-z][A-Za-z0-9_]{0,80}%                            # %VAR%
  | \$[A-Za-z_][A-Za-z0-9_]{0,80}                           # $VAR
  | \[\[[^\[\]\n]{1,80}\]\]                                 # [[x]]
"""
_URL = r"""
    (?:[A-Za-z][A-Za-z0-9+.\-]{1,15}://|www\.)[^\s<>"'`|\\^{}\u3000-\u303f\uff00-\uff0f\u4e00-\u9fff]
      [^\s<>"`|\\^\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\u4e00-\u9fff]{0,2000}
      (?<![.,;:!?)\]'\u2019\u201d\u00bb])/?
"""
_EMAIL = r"""[A-Za-z0-9_%+\-](?:[A-Za-z0-9._%+\-]{0,62}[A-Za-z0-9_%+\-])?
    @[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63}){1,8}"""
_TAG = r"""</?[A-Za-z](?:[^<>"'\n]|"[^"\n]*+"|'[^'\n]*+')*+>"""
# No language that parts words by spaces has such words: data, which a model would only garble.
_LETTER = "[^\\W\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
_LONG = rf"(?<!\S)(?:{_LETTER}|[!-/:;=?@\[-^`{{-~]){{256,}}+"
_HARD = re.compile(
    rf"(?P<tag>{_TAG})|(?P<url>{_URL})|(?P<email>(?<![A-Za-z0-9._%+\-]){_EMAIL})|(?P<code>`[^`\n]{{1,200}}`)"
    rf"|(?P<placeholder>{_PLACEHOLDER})|(?P<long>{_LONG})",
    re.VERBOSE,
)
_GLUED = re.compile(rf"(?P<email>{_EMAIL})", re.VERBOSE)  # right behind a match
_SIGN = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2900-\u297f"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
    "[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*[\U000e0020-\U000e007f]*"
)
_EMOJI = rf"(?:[0-9#*]\ufe0f?\u20e3|{_SIGN}(?:\u200d{_SIGN})*)"
_SOFT = re.compile(
    rf"(?P<emoji>(?:(?<=[^ ])[ ])?{_EMOJI}(?:[ ]?{_EMOJI})*(?:[ ](?=[^ ]))?)"
    rf"|(?P<symbol>[\x00-\x08\x0e-\x1b\x1f\x7f]+|{PRIVATE})"
)
_VOID = re.compile(r"</?(?:area|br|hr|img|input|wbr)\b|.*/>$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """`raw` is what comes back, character by character."""

    raw: str
    kind: Kind
    place: Place = "word"


@dataclass(frozen=True, slots=True)
class Protected:
    """`size`: the characters of the document that it stands for, if it is a part of one."""

    text: str
    spans: tuple[Span, ...]
    size: int = 0

    def span(self, private: str) -> Span:
        return self.spans[ord(private) - _FIRST]

    def is_word(self, char: str) -> bool:
        return is_private(char) and self.span(char).place == "word"

    def is_mark(self, char: str) -> bool:
        return is_private(char) and self.span(char).place != "word"

    def restore(self, text: str, escape: Callable[[str], str] = str) -> str:
        """`text` with the originals for private characters, the rest of it escaped."""
        parts: list[str] = []
        at = 0
        for match in _PRIVATE.finditer(text):
            span = self.span(match[0])
            raw = escape(span.raw) if span.kind in ("term", "number") else span.raw
            parts += (escape(text[at : match.start()]), raw)
            at = match.end()
        parts.append(escape(text[at:]))
        return "".join(parts)


class Builder:
    """Puts a `Protected` together, part by part; `param` is named when there are too many."""

    def __init__(self, param: str, spans: tuple[Span, ...] = ()) -> None:
        self._param = param
        self._parts: list[str] = []
        self._spans = list(spans)

    def text(self, text: str) -> None:
        self._parts.append(text)

    def span(self, raw: str, kind: Kind, place: Place = "word") -> None:
        self._parts.append(self.private(Span(raw, kind, place)))

    def private(self, span: Span) -> str:
        if len(self._spans) > _LAST - _FIRST:
            raise TooLong(
                f"{self._param} has more than {len(self._spans)} placeholders, tags and symbols",
                param=self._param,
            )
        self._spans.append(span)
        return chr(_FIRST + len(self._spans) - 1)

    def scan(self, text: str, decode: Callable[[str], str] = str, tags: bool = True) -> None:
        """Add plain text with all that is found in it; what is left between is decoded."""
        at = 0
        for match in _hard(text):
            kind = match.lastgroup
            if kind == "tag" and not tags:
                continue
            self._soft(decode(text[at : match.start()]))
            raw = match[0]
            if kind == "tag":
                after = raw.startswith("</") and not _VOID.match(raw)
                self.span(raw, "tag", "after" if after else "before")
            elif kind == "long":
                self.span(raw, "code")
            else:
                self.span(raw, kind)  # type: ignore[arg-type]  # groups are named by kinds
            at = match.end()
        self._soft(decode(text[at:]))

    def done(self) -> Protected:
        return Protected("".join(self._parts), tuple(self._spans))

    def _soft(self, text: str) -> None:
        at = 0
        for match in _SOFT.finditer(text):
            if match.lastgroup == "symbol":
                self.text(text[at : match.start()])
                self.span(match[0], "symbol", "after")
                at = match.end()
                continue
            start, end = match.span()
            left, right = text[start] == " ", text[end - 1] == " "
            if left and right:
                start += 1  # one of the two spaces stays in the text
            self.text(text[at:start])
            self.span(text[start:end], "emoji", "before" if right else "after")
            at = end
        self.text(text[at:])


def _hard(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while match := _HARD.search(text, at):
        while match:
            yield match
            at = match.end()
            match = _GLUED.match(text, at)


def is_private(char: str) -> bool:
    return ord(char) >= _FIRST


def public(text: str) -> str:
    """A model's output without private characters of its own, which would stand for something."""
    return _PRIVATE.sub("\ufffd", text)


def protect(text: str, param: str) -> Protected:
    builder = Builder(param)
    builder.scan(text)
    return builder.done()
