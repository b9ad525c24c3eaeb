"""Terms that a request wants translated in one way, found in a sentence and in its translation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from app.errors import InvalidField
from app.text.tokenizer import check_text

MAX_TERMS, MAX_TERM = 200, 100  # terms of a request, characters of a term


@dataclass(frozen=True)
class Glossary:
    """Pairs of a source term and its translation; empty for most requests."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[str, str]) -> Glossary:
        """Checked: an error names the term."""
        if len(terms) > MAX_TERMS:
            raise InvalidField(
                f"glossary has {len(terms)} terms, at most {MAX_TERMS} are allowed",
                param="glossary",
            )
        for pair in terms.items():
            for text in pair:
                param = f"glossary[{pair[0][:MAX_TERM]!r}]"
                check_text(text, param="glossary")
                if not text.strip():
                    raise InvalidField(f"{param} has a blank side", param="glossary")
                if len(text) > MAX_TERM or any(char < " " for char in text):
                    raise InvalidField(
                        f"{param}: at most {MAX_TERM} characters on one line", param="glossary"
                    )
        return cls(tuple((source.strip(), target.strip()) for source, target in terms.items()))

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Where terms stand, and their translations: the longest first, none inside another."""
        if not self.pairs:
            return []
        targets = self._targets
        return [(*m.span(), targets[m[0].casefold()]) for m in self._pattern.finditer(text)
                if m[0].casefold() in targets]  # fmt: skip

    def check(self, source: str, output: str) -> tuple[set[str], set[str]]:
        """The source terms that are in `source`: those with, and those without their target."""
        hits: set[str] = set()
        misses: set[str] = set()
        found = output.casefold()
        for start, end, target in self.find(source):
            term = self._names[source[start:end].casefold()]
            (hits if target.casefold() in found else misses).add(term)
        return hits, misses

    @cached_property
    def _targets(self) -> dict[str, str]:
        return {source.casefold(): target for source, target in self.pairs}

    @cached_property
    def _names(self) -> dict[str, str]:
        return {source.casefold(): source for source, _ in self.pairs}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        ordered = sorted((source for source, _ in self.pairs), key=len, reverse=True)
        return re.compile("|".join(map(_bounded, ordered)), re.IGNORECASE)


def _bounded(term: str) -> str:
    """The term as whole words, where its language parts words by spaces."""
    left = r"(?<![^\W_])" if _in_words(term[0]) else ""
    right = r"(?![^\W_])" if _in_words(term[-1]) else ""
    return left + re.escape(term) + right


def _in_words(char: str) -> bool:
    return char.isalnum() and not "\u3040" <= char <= "\u9fff"
