"""What is told and counted of the quality of translations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.metrics import Metrics
from app.tasks.attempts import Candidate, Method
from app.text.quality import Flag, in_order

Way = Literal[Method, "repair"]


@dataclass(frozen=True, slots=True)
class SentenceQuality:
    score: float | None  # mean log-probability of a token
    flags: tuple[Flag, ...]
    lost: tuple[str, ...]  # protected words that are missing or there twice
    method: Way


@dataclass(frozen=True, slots=True)
class Quality:
    """Of an item: mean score, all flags, and those of every sentence that was translated."""

    score: float | None
    flags: tuple[Flag, ...]
    sentences: tuple[SentenceQuality, ...]
    hits: tuple[str, ...]  # terms of the glossary in the text, with their target in every sentence
    misses: tuple[str, ...]


_WAYS: tuple[Way, ...] = ("first", "repair", "beam", "segments")


def quality(made: Sequence[Candidate]) -> Quality:
    misses = {term for one in made for term in one.misses}
    return Quality(
        _score(made),
        in_order({flag for one in made for flag in one.flags}),
        tuple(merged([one]) for one in made),
        tuple(sorted({term for one in made for term in one.hits} - misses)),
        tuple(sorted(misses)),
    )


def merged(made: Sequence[Candidate]) -> SentenceQuality:
    """Of one sentence, or of several as if they were one."""
    ways: set[Way] = {"repair" if one.repaired else one.method for one in made}
    return SentenceQuality(
        _score(made),
        in_order({flag for one in made for flag in one.flags}),
        tuple(word for one in made for word in one.lost),
        max(ways, key=_WAYS.index),
    )


def _score(made: Sequence[Candidate]) -> float | None:
    if len(made) == 1:
        return made[0].score
    tokens = sum(one.tokens for one in made)
    total = sum((one.score or 0.0) * one.tokens for one in made)
    return total / tokens if tokens else None


def count(
    metrics: Metrics, made: Sequence[Candidate], retried: Sequence[tuple[Candidate, Candidate]]
) -> None:
    for one in made:
        metrics.translated_sentences.labels("repair" if one.repaired else one.method).inc()
        for flag in one.flags:
            metrics.flagged_sentences.labels(flag).inc()
    for before, after in retried:
        result = "kept" if after is before else "cured" if not after.flags else "better"
        metrics.retried_sentences.labels(result).inc()
