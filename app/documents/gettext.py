"""PO files of gettext: what has no translation yet gets one; all other lines stay as they are.

polib checks the syntax and reads strings. It would write headers, comments and line breaks in its
own way, so only the `msgstr` lines of what was translated are replaced here. A doubtful translation
makes its entry fuzzy. Of plural forms the first is the singular's, all others the plural's.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.documents.encoding import decode
from app.documents.units import Translated, Unit, has_letters
from app.errors import BadDocument

_KEYWORD = re.compile(r'\s*(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s*"(.*)"\s*$', re.DOTALL)
_MORE = re.compile(r'\s*"(.*)"\s*$', re.DOTALL)
_CHARSET = re.compile(r"charset=([\w.:-]+)", re.IGNORECASE)
_WIDTH = 77


@dataclass(slots=True)
class _Form:
    """One msgstr: its keyword, its lines (first, behind the last) and what stands in it."""

    keyword: str
    first: int
    end: int
    text: str = ""


@dataclass(slots=True)
class _Entry:
    flags: int = -1  # line of `#, ...`
    first: int = -1  # line of msgctxt or msgid
    msgid: str = ""
    plural: str | None = None
    forms: list[_Form] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        empty = bool(self.forms) and not any(form.text for form in self.forms)
        return empty and has_letters([self.msgid])

    @property
    def sources(self) -> list[str]:
        if self.plural is None:
            return [self.msgid]
        if len(self.forms) == 1:
            return [self.plural]
        return [self.msgid, self.plural]


class Catalog:
    def __init__(self, data: bytes) -> None:
        self._decoded = decode(data)
        text = self._decoded.text
        self._return = "\r" if "\r\n" in text else ""
        _check(text)
        self._lines = text.split("\n")
        entries = _entries(self._lines)
        for entry in entries:
            if not entry.msgid and entry.forms:
                _check_charset(entry.forms[0].text)
        self._entries = [entry for entry in entries if entry.wanted]
        self.units = [Unit(source) for entry in self._entries for source in entry.sources]

    def write(self, translations: Sequence[Translated]) -> bytes:
        lines: list[str] = []
        at = taken = 0
        for entry in self._entries:
            sources = entry.sources
            made = translations[taken : taken + len(sources)]
            taken += len(sources)
            if any(one.doubtful for one in made):
                flags = entry.flags if entry.flags >= 0 else entry.first
                lines += self._lines[at:flags]
                given = self._lines[flags] if entry.flags >= 0 else "#,"
                lines.append(_fuzzy(given) + self._return)
                at = flags + 1 if entry.flags >= 0 else flags
            for i, form in enumerate(entry.forms):
                text = made[min(i, len(made) - 1)].text
                if text != sources[min(i, len(made) - 1)]:
                    lines += self._lines[at : form.first]
                    lines += [one + self._return for one in _written(form.keyword, text)]
                    at = form.end
        return self._decoded.encode("\n".join(lines + self._lines[at:]))


def _check(text: str) -> None:
    import polib

    try:
        polib.pofile("\n" + text)  # what begins with a line break is no file's name to polib
    except (OSError, ValueError, IndexError) as error:
        found = re.search(r"\(line (\d+)\)", str(error))
        place = f", line {int(found[1]) - 1}" if found else ""
        raise BadDocument(f"file{place}: not the syntax of a PO file") from None


def _check_charset(header: str) -> None:
    found = _CHARSET.search(header)
    if found and found[1].lower() not in ("utf-8", "utf8", "us-ascii", "ascii", "charset"):
        raise BadDocument(f"file declares the charset {found[1][:40]}: only UTF-8 is read")


def _entries(lines: Sequence[str]) -> list[_Entry]:
    import polib

    entries = [_Entry()]
    keyword = ""
    for i, line in enumerate(lines):
        entry = entries[-1]
        if match := _KEYWORD.match(line):
            keyword, text = match[1], polib.unescape(match[2])
            if entry.forms and keyword in ("msgctxt", "msgid"):
                entries.append(entry := _Entry())
            if entry.first < 0:
                entry.first = i
            if keyword.startswith("msgstr"):
                entry.forms.append(_Form(keyword, i, i + 1))
        elif (match := _MORE.match(line)) and keyword:
            text = polib.unescape(match[1])
        else:
            keyword = ""
            if line.strip() and not line.lstrip().startswith("#"):
                raise BadDocument(f"file, line {i + 1}: not the syntax of a PO file")
            if line.lstrip().startswith("#"):
                if entry.forms:
                    entries.append(entry := _Entry())
                if line.lstrip().startswith("#,"):
                    entry.flags = i
            continue
        if keyword == "msgid":
            entry.msgid += text
        elif keyword == "msgid_plural":
            entry.plural = (entry.plural or "") + text
        elif keyword.startswith("msgstr"):
            entry.forms[-1].text += text
            entry.forms[-1].end = i + 1
    return entries


def _fuzzy(flags: str) -> str:
    rest = flags.lstrip().removeprefix("#,").strip()
    if "fuzzy" in [flag.strip() for flag in rest.split(",")]:
        return flags.rstrip()
    return f"#, fuzzy, {rest}" if rest else "#, fuzzy"


def _written(keyword: str, text: str) -> list[str]:
    import polib

    parts = [polib.escape(part) for part in text.splitlines(keepends=True)]
    if len(parts) == 1 and len(keyword) + len(parts[0]) + 3 <= _WIDTH:
        return [f'{keyword} "{parts[0]}"']
    wrapper = textwrap.TextWrapper(
        _WIDTH, drop_whitespace=False, replace_whitespace=False,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    wrapped = [
        line
        for part in parts
        for line in wrapper.wrap(part)
    ]
    return [f'{keyword} ""', *(f'"{line}"' for line in wrapped)]
