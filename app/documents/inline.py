"""The inline syntax of Markdown, as HTML whose tags stand for the stretches that must come back.

markdown-it-py says what is syntax and the rules, wrapped here, say where: it keeps no positions of
its own. Code, links' ends, images, tags and line breaks become tags that carry a number; text
between them is as it stands. What all of it stands for, in order, is the source.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.errors import BadDocument

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_core import StateCore
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_DELIMITERS = frozenset({"emphasis", "strikethrough"})
_POSITIONED = ("backticks", "autolink", "html_inline", "image", "entity", "escape", "newline",
               "link", "emphasis", "strikethrough")  # fmt: skip
_MAX_BRACKETS = 2000  # in one paragraph: the parser's time grows with their square
_FOOTNOTE = re.compile(r"\[\^[^\]\s]{1,100}\]:?[ ]?|(?<![^\n])\[[ xX]\][ ]")
_TAG = re.compile(r"<(?:x|/x|wbr|br|code)-?[^>]*>")
_WORDS = re.compile(r'<code id="(\d+)">.*?</code>', re.DOTALL)
_NUMBER = re.compile(r"\d+")
_SPECIAL = "\\`*_[]<~"

Way = Literal["code", "open", "close", "mark", "break", "space"]


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    way: Way
    raw: str = ""  # what to write, where that is not the source
    half: bool = False


@dataclass(frozen=True, slots=True)
class Inline:
    """`text` is the HTML; `raws` are what its numbered tags stand for."""

    source: str
    text: str
    raws: dict[str, str]  # by number; that of a closing tag begins with a slash
    words: str  # what is text, to know which characters were syntax nowhere

    def restore(self, translation: str) -> str:
        """Markdown again; characters that would become syntax are escaped."""
        if translation == self.text:
            return self.source
        translation = _WORDS.sub(lambda m: f"<code-{m[1]}>", translation)
        special = "".join(c for c in _SPECIAL if c not in self.words)
        parts: list[str] = []
        at = 0
        for tag in _TAG.finditer(translation):
            parts.append(_escaped(html.unescape(translation[at : tag.start()]), special))
            number = _NUMBER.search(tag[0])
            key = ("/" if tag[0].startswith("</") else "") + (number[0] if number else "")
            parts.append(self.raws.get(key, tag[0]))
            at = tag.end()
        parts.append(_escaped(html.unescape(translation[at:]), special))
        return "".join(parts)


def watch(parser: MarkdownIt) -> None:
    """Make the parser's inline rules note where what they found stands."""
    for name in _POSITIONED:
        rule = next(r for r in parser.inline.ruler.__rules__ if r.name == name)
        parser.inline.ruler.at(name, _noting(name, rule.fn))
    parser.inline.ruler2.disable(["fragments_join"])
    parser.core.ruler.disable(["text_join"])
    parser.core.ruler.before("inline", "bounds", _check_bounds)


def _check_bounds(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline" and token.content.count("[") > _MAX_BRACKETS:
            raise BadDocument(f"file: a paragraph has more than {_MAX_BRACKETS} brackets")


def _noting(
    name: str, rule: Callable[[StateInline, bool], bool]
) -> Callable[[StateInline, bool], bool]:
    def noting(state: StateInline, silent: bool) -> bool:
        start, before = state.pos, len(state.tokens) + bool(state.pending)
        linked = name == "link" and state.src[start] == "["
        label = state.md.helpers.parseLinkLabel(state, start) if linked else -1
        state.pos = start
        if not rule(state, silent):
            return False
        if silent:
            return True
        made = state.tokens[before:]
        if name in _DELIMITERS:
            size = (state.pos - start) // max(len(made), 1)
            for i, token in enumerate(made):
                token.meta["at"] = (start + i * size, start + (i + 1) * size)
        elif name == "link":
            made[0].meta["at"] = (start, start + 1)
            made[-1].meta["at"] = (label, state.pos)
            if state.src[label : state.pos] in ("]", "][]"):  # the text is the reference too
                made[-1].meta["raw"] = f"][{state.src[start + 1 : label]}]"
        elif made:
            made[0].meta["at"] = (start, state.pos)
        return True

    return noting


def read(token: Token) -> Inline:
    """What markdown-it made of `token.content`."""
    source = token.content
    spans = _whole_words(source, [*_spans(source, token.children or [])])
    parts: list[str] = []
    raws: dict[str, str] = {}
    words: list[str] = []
    opened: list[int] = []  # numbers of elements without an end yet
    at = 0
    for i, span in enumerate([*spans, _Span(len(source), len(source), "space")]):
        text, raw = source[at : span.start], source[span.start : span.end]
        at = span.end
        words.append(text)
        parts.append(html.escape(text, quote=False))
        if span.way == "space":
            parts.append(raw)
            continue
        number = opened.pop() if span.way == "close" and opened else i
        if span.way == "open":
            opened.append(number)
        raws[f"/{number}" if span.way == "close" else str(number)] = span.raw or raw
        parts.append({
            "code": f'<code id="{number}">{html.escape(raw, quote=False)}</code>',
            "open": f"<x-{number}>",
            "close": f"</x-{number}>",
            "mark": f'<wbr id="{number}">',
            "break": f'<br id="{number}">',
        }[span.way])  # fmt: skip
    return Inline(source, "".join(parts), raws, "".join(words))


def _spans(source: str, tokens: list[Token]) -> list[_Span]:
    found: list[_Span] = []
    for token in tokens:
        if "at" not in token.meta:
            continue
        start, end = token.meta["at"]
        way = _way(token, source[start:end])
        if way is None or start < (found[-1].end if found else 0):
            continue
        last = found[-1] if found else None
        half = token.type == "text"  # of a `**`, as is the one beside it
        if last and last.end == start and last.way == "close" and half:
            found[-1] = _Span(last.start, end, "close")
        elif last and last.end == start and last.way == "mark" and way == "open" and last.half:
            found[-1] = _Span(last.start, end, "open")
        else:
            found.append(_Span(start, end, way, token.meta.get("raw", ""), half))
    starts = [span.start for span in found]
    for match in _FOOTNOTE.finditer(source):
        i = bisect_left(starts, match.end())  # the span before is the last that could be in it
        if i == 0 or found[i - 1].end <= match.start():
            found.append(_Span(*match.span(), "mark"))
    return sorted(found, key=lambda span: span.start)


def _way(token: Token, raw: str) -> Way | None:
    if token.type == "text":
        return "mark" if not token.content else None  # half of a `**`
    if token.type == "softbreak":
        return "space"
    if token.type == "hardbreak":
        return "break"
    if token.type == "html_inline":
        return "close" if raw.startswith("</") else "mark"
    if token.type in ("code_inline", "text_special", "image") or token.markup == "autolink":
        return "code"
    return "open" if token.nesting == 1 else "close"


def _whole_words(source: str, spans: list[_Span]) -> list[_Span]:
    """An escape or an entity is kept with all of the word that it is in."""
    found: list[_Span] = []
    for i, span in enumerate(spans):
        start, end = span.start, span.end
        if span.way == "code" and source[start] in "\\&":
            low = found[-1].end if found else 0
            high = spans[i + 1].start if i + 1 < len(spans) else len(source)
            while start > low and not source[start - 1].isspace():
                start -= 1
            while end < high and not source[end].isspace():
                end += 1
            if found and found[-1].way == "code" and found[-1].end == start:
                start = found.pop().start
        found.append(_Span(start, end, span.way, span.raw))
    return found


def _escaped(text: str, special: str) -> str:
    return "".join("\\" + char if char in special else char for char in text)
