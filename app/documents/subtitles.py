"""SRT subtitles: the lines of every cue are a unit, a line of a dialogue is one of its own.

Numbers, times and what stands beside them are not touched, so the file is read by position. A
translation gets as many lines as its cue has, of about equal length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.documents.encoding import decode
from app.documents.units import Edits, Translated, Unit, has_letters
from app.errors import BadDocument

_TIME = r"(\d{1,3}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMING = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}(?:[ \t].*)?")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_SPEAKER = re.compile(r"[ \t]*(?:<[^>]*>)?[ \t]*[-\u2010-\u2015]")
_PREFIX = re.compile(r"(?:\{\\[^}\n]*\})*[ \t]*(?:[-\u2010-\u2015][ \t]*)?")  # position, dash


@dataclass(frozen=True, slots=True)
class _Text:
    start: int
    end: int
    lines: tuple[str, ...]
    eol: str

    @property
    def joined(self) -> str:
        return " ".join(line.strip() for line in self.lines)


class Subtitles:
    def __init__(self, data: bytes) -> None:
        self._decoded = decode(data)
        self._texts = [
            text for cue in _cues(self._decoded.text) for text in _split(cue, self._decoded.text)
        ]
        self.units = [Unit(text.joined) for text in self._texts]

    def write(self, translations: Sequence[Translated]) -> bytes:
        edits = Edits(self._decoded.text)
        for text, unit, made in zip(self._texts, self.units, translations, strict=True):
            if made.text != unit.text:
                lines = wrap(" ".join(made.text.split()), len(text.lines))
                edits.replace(text.start, text.end, text.eol.join(lines))
        return self._decoded.encode(edits.done())


def wrap(text: str, count: int) -> list[str]:
    """At most `count` lines of about equal length, cut at spaces or, without any, anywhere."""
    lines: list[str] = []
    while count > 1 and text:
        ideal = len(text) / count
        cuts = [m.start() for m in re.finditer(" ", text)] or list(range(1, len(text)))
        if not cuts:
            break
        cut = min(cuts, key=lambda at: abs(at - ideal))
        lines.append(text[:cut].strip())
        text, count = text[cut:].strip(), count - 1
    return [*lines, text]


def _cues(text: str) -> list[list[tuple[int, int]]]:
    """Of every cue, where its lines of text are."""
    lines = [m.span() for m in _LINE.finditer(text) if m[0]]
    cues: list[list[tuple[int, int]]] = []
    i = 0
    while i < len(lines):
        first = text[slice(*lines[i])].strip()
        if not first:
            i += 1
            continue
        if first.isdigit() and i + 1 < len(lines):
            i += 1  # the cue's number
        _check_timing(text[slice(*lines[i])].strip(), i + 1)
        cue: list[tuple[int, int]] = []
        i += 1
        while i < len(lines) and not _ends(text, lines, i):
            start, end = lines[i]
            cue.append((start, start + len(text[start:end].rstrip("\r\n"))))
            i += 1
        cues.append(cue)
    if not cues:
        raise BadDocument("file has no subtitles")
    return cues


def _ends(text: str, lines: Sequence[tuple[int, int]], i: int) -> bool:
    """A cue ends at a blank line, and where the next one begins without one."""
    line = text[slice(*lines[i])].strip()
    if not line or not line.isdigit() or i + 1 == len(lines):
        return not line
    return _TIMING.fullmatch(text[slice(*lines[i + 1])].strip()) is not None


def _check_timing(line: str, number: int) -> None:
    match = _TIMING.fullmatch(line)
    if match is None:
        raise BadDocument(
            f"file, line {number}: {line[:60]!r} is not a timing such as "
            "00:00:01,000 --> 00:00:02,500"
        )
    fields = [int(field) for field in match.groups()]
    start, end = (((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (fields[:4], fields[4:]))
    if any(fields[i] > 59 for i in (1, 2, 5, 6)) or end < start:
        raise BadDocument(f"file, line {number}: the timing {line[:60]!r} cannot be")


def _split(cue: Sequence[tuple[int, int]], text: str) -> list[_Text]:
    """A cue as one text, or as one for each line if each is said by another speaker."""
    groups = [[span] for span in cue]
    if not (len(cue) > 1 and all(_SPEAKER.match(text[a:b]) for a, b in cue)):
        groups = [list(cue)] if cue else []
    found = []
    for group in groups:
        start, end = group[0][0], group[-1][1]
        prefix = _PREFIX.match(text, start, group[0][1])
        start = prefix.end() if prefix else start
        lines = (text[start : group[0][1]], *(text[a:b] for a, b in group[1:]))
        eol = text[group[0][1] : group[1][0]] if len(group) > 1 else "\n"
        if has_letters(lines):
            found.append(_Text(start, end, lines, eol))
    return found
