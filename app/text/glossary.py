"""Terms that a request wants translated in one way, found in a sentence and in its translation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from app.errors import InvalidField
from app.text.tokenizer import check_text

MAX_TERMS, MAX_TERM = 200, 100  # terms of a request, characters of a term


@dataclass(frozen=True)
class Glossary:
    """Pairs of a source term and its translation; empty for most requests.

    A stored one has a `name` and `languages`. Where the model writes another script than the
    request, `pairs` are in the model's and `given` are as they came.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    name: str = ""
    languages: tuple[str, str] | None = None
    given: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls, terms: Mapping[str, str], param: str = "glossary", most: int = MAX_TERMS
    ) -> Glossary:
        """Checked: an error names the term."""
        if len(terms) > most:
            raise InvalidField(
                f"{param} has {len(terms)} terms, at most {most} are allowed", param=param
            )
        for pair in terms.items():
            for text in pair:
                where = f"{param}[{pair[0][:MAX_TERM]!r}]"
                check_text(text, param=param)
                if not text.strip():
                    raise InvalidField(f"{where} has a blank side", param=param)
                if len(text) > MAX_TERM or any(char < " " for char in text):
                    raise InvalidField(
                        f"{where}: at most {MAX_TERM} characters on one line", param=param
                    )
        return cls(tuple((source.strip(), target.strip()) for source, target in terms.items()))

    def scripted(self, source: Callable[[str], str], target: Callable[[str], str]) -> Glossary:
        """With its terms as the model reads and writes them."""
        pairs = tuple((source(term), target(wanted)) for term, wanted in self.pairs)
        return replace(self, pairs=pairs, given=self.pairs)

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Where terms stand, and their translations: the longest first, none inside another."""
        there = text.casefold()
        here = [source for source, _ in self.pairs if source.casefold() in there]
        if not here:
            return []
        here.sort(key=len, reverse=True)
        pattern = re.compile("|".join(map(_bounded, here)), re.IGNORECASE)
        return [(*m.span(), self._terms[m[0].casefold()][2]) for m in pattern.finditer(text)
                if m[0].casefold() in self._terms]  # fmt: skip

    def check(self, source: str, output: str) -> tuple[set[str], set[str]]:
        """The source terms that are in `source`: those with, and those without their target."""
        hits: set[str] = set()
        misses: set[str] = set()
        found = output.casefold()
        for start, end, _ in self.find(source):
            target, term, _ = self._terms[source[start:end].casefold()]
            (hits if target.casefold() in found else misses).add(term)
        return hits, misses

    @cached_property
    def _terms(self) -> dict[str, tuple[str, str, str]]:
        """Of each source term its translation, and both as they were given."""
        return {
            source.casefold(): (target, *given)
            for (source, target), given in zip(
                self.pairs, self.given or self.pairs, strict=True
            )
        }


def _bounded(term: str) -> str:
    """The term as whole words, where its language parts words by spaces."""
    left = r"(?<![^\W_])" if _in_words(term[0]) else ""
    right = r"(?![^\W_])" if _in_words(term[-1]) else ""
    return left + re.escape(term) + right


def _in_words(char: str) -> bool:
    return char.isalnum() and not "\u3040" <= char <= "\u9fff"
