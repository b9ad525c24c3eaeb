"""How translations behave, whatever their wording: runaway, language, copied, what is kept.

A test set and its outputs flow in, shares flow out. A reference tells what can be asked for: a
number or a name counts only where the reference has it as the source has, and the language of the
outputs stands beside that of the references, which the identifier does not always know either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from training.rules import Identifier
from training.scores import TestSet, loops

SHORT, LONG = 0.5, 2.0  # times the reference's characters, with SLACK characters more or less
SLACK = 10
_NUMBER = re.compile(r"\d+(?:[.,:'\u202f\u00a0]?\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


@dataclass(frozen=True)
class Behaviour:
    """Shares in 0..1 of a set's outputs; `numbers` and `names` are of those that should be kept."""

    runaway: float  # cut at the length limit, or one 4-gram four times
    in_language: float  # identified as the target language
    reference_in_language: float
    copied: float  # the source again, where the reference is something else
    empty: float
    short: float  # fewer than half of the reference's characters
    long: float  # more than twice as many
    numbers: float | None  # None where there are none
    names: float | None


def observe(
    test: TestSet, outputs: Sequence[tuple[str, str]], identifier: Identifier
) -> Behaviour:
    """Shares over (text, finish reason) of each line of the set, in order."""
    texts = [text for text, _ in outputs]
    lines = list(zip(test.sources, test.references, texts, strict=True))
    count = max(1, len(lines))

    def share(found: Iterable[bool]) -> float:
        return sum(found) / count

    common = {
        word for line in (*test.sources, *test.references) for word in _WORD.findall(line)
        if word.islower()
    }  # fmt: skip
    return Behaviour(
        share(reason == "length" or loops(text) for text, reason in outputs),
        share(identifier.agrees(text, test.target) for text in texts),
        share(identifier.agrees(text, test.target) for text in test.references),
        share(_folded(text) == _folded(source) != _folded(reference)
              for source, reference, text in lines),
        share(not text.strip() for text in texts),
        share(len(text) + SLACK < SHORT * len(reference) for _, reference, text in lines),
        share(len(text) > LONG * len(reference) + SLACK for _, reference, text in lines),
        _kept(lines, numbers),
        _kept(lines, lambda line: names(line, common)),
    )  # fmt: skip


def numbers(text: str) -> set[str]:
    """Numbers as their digits, so that 1,000.5 is 1.000,5."""
    return {re.sub(r"\D", "", found) for found in _NUMBER.findall(text)}


def names(text: str, common: set[str]) -> set[str]:
    """Words in Latin letters with a capital, unless they are known without one."""
    return {
        word for word in _WORD.findall(text)
        if len(word) > 1 and _LATIN.match(word) and word[0].isupper() and word.lower() not in common
    }  # fmt: skip


def _kept(
    lines: Sequence[tuple[str, str, str]], of: Callable[[str], set[str]]
) -> float | None:
    kept = asked = 0
    for source, reference, text in lines:
        wanted = of(source) & of(reference)
        asked += len(wanted)
        kept += len(wanted & of(text))
    return kept / asked if asked else None


def _folded(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def table(rows: Iterable[tuple[str, str, str, Behaviour]]) -> str:
    """Markdown of (set, source, target, behaviour), in percent."""
    lines = [
        "| set | direction | runaway | in the language (references) | copied | empty | short "
        "| long | numbers kept | names kept |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, source, target, b in rows:
        shares = (b.copied, b.empty, b.short, b.long, b.numbers, b.names)
        cells = " | ".join("" if share is None else f"{100 * share:.1f}" for share in shares)
        lines.append(
            f"| {name} | {source}-{target} | {100 * b.runaway:.1f} "
            f"| {100 * b.in_language:.1f} ({100 * b.reference_in_language:.1f}) | {cells} |"
        )
    return "\n".join(lines)
