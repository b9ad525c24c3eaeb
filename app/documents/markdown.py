"""Markdown: every paragraph, heading, item and cell is a unit, HTML blocks are read as HTML.

markdown-it-py finds the blocks and their lines; front matter, code blocks and the definitions of
links are no text. Only the stretches of the units are written anew, with the prefixes (of quotes
and lists) that their lines have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from app.documents import inline
from app.documents.encoding import decode
from app.documents.units import Edits, Translated, Unit, has_letters
from app.text.markup import places

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FRONT = re.compile(r"(---[ \t]*\r?\n.*?\r?\n(?:---|\.\.\.)|\+\+\+[ \t]*\r?\n.*?\r?\n\+\+\+)"
                    r"[ \t]*(?:\r?\n|\Z)", re.DOTALL)  # fmt: skip
_LINE = re.compile(r"(?=.|[\r\n])([^\r\n]*)(?:\r\n|\r|\n|\Z)")
_BLOCK = re.compile(
    r"[ \t]*(?:#{1,6}(?=\s|$)|[-+](?=\s|$)|>|(\d{1,9})[.)](?=\s|$)|[-=]+\s*$|:?-+:?\s*\|)"
)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where the lines of a unit stand in the file."""

    lines: tuple[tuple[int, int], ...]
    inline: inline.Inline | None  # None: HTML
    cell: bool = False


class MarkdownText:
    def __init__(self, data: bytes) -> None:
        self._decoded = decode(data)
        self._text = self._decoded.text
        front = _FRONT.match(self._text)
        self._stretches = _Reader(self._text, front.end() if front else 0).read()
        self.units = [
            Unit(s.inline.text if s.inline else self._text[slice(*s.lines[0])], "html")
            for s in self._stretches
        ]

    def write(self, translations: Sequence[Translated]) -> bytes:
        edits = Edits(self._text)
        for stretch, unit, made in zip(self._stretches, self.units, translations, strict=True):
            if made.text == unit.text:
                continue
            text = made.text
            if stretch.inline:
                text = self._laid_out(stretch, stretch.inline.restore(text))
            edits.replace(stretch.lines[0][0], stretch.lines[-1][1], text)
        return self._decoded.encode(edits.done())

    def _laid_out(self, stretch: _Stretch, text: str) -> str:
        """With what stands between the lines of the source, and no line that begins a block."""
        assert stretch.inline is not None
        if stretch.cell:
            return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))
        starts = [a for a, _ in stretch.lines[1:]]
        ends = [b for _, b in stretch.lines]
        gaps = [self._text[end:start] for end, start in zip(ends, starts, strict=False)] or ["\n"]
        sources = stretch.inline.source.split("\n")
        parts: list[str] = []
        for i, line in enumerate(text.split("\n")):
            own = sources[min(i, len(sources) - 1)]
            parts.append(line if _BLOCK.match(own) else _plain(line))
            parts.append(gaps[min(i, len(gaps) - 1)])
        return "".join(parts[:-1])


class _Reader:
    """Finds the stretches of a text behind its front matter."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._body = start
        self._lines: list[tuple[int, int]] = []  # without their ends
        for line in _LINE.finditer(text, start):
            self._lines.append(line.span(1))
        self._at = 0  # behind the last stretch

    def read(self) -> list[_Stretch]:
        found: list[_Stretch] = []
        former = ""
        for token in _parser().parse(self._text[self._body :]):
            if token.type == "html_block" and token.level == 0 and token.map:
                found += self._html(token.map)
            elif token.type == "inline" and token.map:
                cell = former in ("td_open", "th_open")
                if stretch := self._stretch(token, token.map[0], cell):
                    found.append(stretch)
                    self._at = stretch.lines[-1][1]
            former = token.type
        return [s for s in found if s.inline is None or has_letters([s.inline.words])]

    def _stretch(self, token: Token, first: int, cell: bool) -> _Stretch | None:
        """Where the token's content is; None where it is not found as it was read."""
        lines: list[tuple[int, int]] = []
        for i, line in enumerate(token.content.split("\n"), first):
            if i >= len(self._lines):
                return None
            start, end = max(self._lines[i][0], self._at), self._lines[i][1]
            raw = self._text[start:end]
            own = line.replace("|", "\\|") if cell and line not in raw else line
            at = raw.find(own) if cell else raw.rfind(own)
            if at < 0:
                own = own.strip()
                at = raw.rfind(own)
            if at < 0:
                return None
            lines.append((start + at, start + at + len(own)))
        return _Stretch(tuple(lines), inline.read(token), cell)

    def _html(self, place: list[int]) -> list[_Stretch]:
        start, end = self._lines[place[0]][0], self._lines[min(place[1], len(self._lines)) - 1][1]
        block = self._text[start:end]
        return [_Stretch(((start + a, start + b),), None) for a, b in places(block, "html", "file")]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    inline.watch(parser)
    return parser


def _plain(line: str) -> str:
    """A line that does not begin as a block would."""
    match = _BLOCK.match(line)
    if match is None:
        return line
    at = match.end(1) if match[1] else len(line) - len(line.lstrip())
    return f"{line[:at]}\\{line[at:]}"
