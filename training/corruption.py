"""Rows of text made into tasks of pretraining: masked, replaced, with a hole to fill, in two parts.

Ids of clean rows flow in, corrupted ids and what to tell of them flow out. All draws come from the
generator that is passed, so rows depend neither on ranks nor on torch's random state. Special
tokens are never masked nor replaced, and no replacement is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.errors import ConfigError
from training.tokenizer import END, MASK, SEPARATOR

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
CLOSING = (".", "!", "?", "\n", "。", "！", "？")  # what a token that ends a sentence ends with
SPAN, LONGEST = 0.2, 10  # chance that a span ends, its longest (SpanBERT, Joshi et al. 2020)


@dataclass(frozen=True)
class Vocabulary:
    """What corruption knows of the tokenizer: `ordinary` and `closing` are flags of every id."""

    end: int
    mask: int
    separator: int
    ordinary: Flags
    closing: Flags

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Raises ConfigError if the tokenizer lacks one of the special tokens."""
        ids = [tokenizer.token_to_id(token) for token in (END, MASK, SEPARATOR)]
        for token, index in zip((END, MASK, SEPARATOR), ids, strict=True):
            if index is None:
                raise ConfigError(f"the tokenizer has no {token}")
        size = tokenizer.get_vocab_size()
        ordinary = np.ones(size, bool)
        ordinary[list(tokenizer.get_added_tokens_decoder())] = False
        texts = tokenizer.decode_batch([[i] for i in range(size)])
        closing = np.array([text.endswith(CLOSING) for text in texts])
        end, mask, separator = ids
        return cls(end, mask, separator, ordinary, closing & ordinary)


def pick(allowed: Flags, rate: float, spans: bool, rng: np.random.Generator) -> Flags:
    """Flags of round(rate x allowed) allowed places, at least one: single ones, or spans.

    Spans have geometric lengths, as SpanBERT's; the last is cut so that the number is exact.
    """
    places = np.flatnonzero(allowed)
    wanted = min(len(places), max(1, round(rate * len(places))))
    chosen = np.zeros(len(allowed), bool)
    if not spans:
        chosen[rng.permutation(places)[:wanted]] = True
        return chosen
    missing = wanted
    while missing:
        begin = int(rng.choice(places))
        length = min(int(rng.geometric(SPAN)), LONGEST)
        span = np.arange(begin, min(begin + length, len(allowed)))
        span = span[allowed[span] & ~chosen[span]][:missing]
        chosen[span] = True
        missing -= len(span)
    return chosen


def replacements(count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> Ids:
    """Ordinary ids, all equally likely; some will be those that they replace."""
    return rng.choice(np.flatnonzero(vocabulary.ordinary), count)


def infilling(row: Ids, vocabulary: Vocabulary, rng: np.random.Generator) -> Ids:
    """`<mask> prefix <sep> suffix <mask> middle <end>`, cut at random (Bavarian et al. 2022, PSM).

    The mask in front tells such a row from plain text; four tokens longer than `row`.
    """
    first, second = np.sort(rng.choice(len(row) + 1, 2, replace=False))
    mask, separator, end = (
        np.array([x]) for x in (vocabulary.mask, vocabulary.separator, vocabulary.end)
    )
    return np.concatenate(
        (mask, row[:first], separator, row[second:], mask, row[first:second], end)
    )


def boundary(document: Ids, vocabulary: Vocabulary, rng: np.random.Generator) -> int:
    """Where a document's second part begins: after a sentence, in the middle half if there is one.

    Documents have two tokens or more.
    """
    size = len(document)
    ends = np.flatnonzero(vocabulary.closing[document[:-1]]) + 1
    inner = ends[(ends >= size / 4) & (ends <= 3 * size / 4)]
    for places in (inner, ends):
        if len(places):
            return int(rng.choice(places))
    return int(rng.integers(1, size))


def segments(
    document: Ids, other: Ids | None, width: int, swapped: bool, vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[Ids, bool]:  # fmt: skip
    """A row `<end> A <sep> B` of at most `width` tokens, and whether B follows A in the document.

    As often as not it does (BERT, Devlin et al. 2019); else B is a part of `other`, or A and B
    are `swapped` (ALBERT, Lan et al. 2020). Without either, B follows. Every B begins where a
    sentence does and goes on as far as document and row allow, so that its length tells nothing.
    Parts to be swapped are whole sentences, or their cut ends would tell.
    """
    follows = bool(rng.random() < 0.5) or (other is None and not swapped)
    split = boundary(document, vocabulary, rng)
    size = int(rng.integers(width // 4, 3 * width // 4))  # of the first part, at most
    first = document[max(0, split - size) : split]
    room = width - 2 - len(first)
    second = document[split : split + room]
    if swapped:
        begin, end = split - len(first), split + len(second)
        first, second = _whole_sentences(document, begin, split, end, vocabulary)
    if not follows and swapped:
        first, second = second, first
    elif not follows and other is not None:
        split = boundary(other, vocabulary, rng)
        second = other[split : split + room]
    parts: Sequence[Ids] = (
        np.array([vocabulary.end]), first, np.array([vocabulary.separator]), second
    )
    return np.concatenate(parts), follows


def _whole_sentences(
    document: Ids, begin: int, split: int, end: int, vocabulary: Vocabulary
) -> tuple[Ids, Ids]:
    """The parts of document[begin:end] at a split, less the cut sentences at its ends; a part of
    one sentence stays as it is."""
    inner = np.flatnonzero(vocabulary.closing[document[:-1]]) + 1
    borders = np.array([0, *inner, len(document)])
    before = borders[(begin <= borders) & (borders < split)]
    after = borders[(split < borders) & (borders <= end)]
    begin, end = min(before, default=begin), max(after, default=end)
    return document[begin:split], document[split:end]
