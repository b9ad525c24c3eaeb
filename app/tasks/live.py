"""A running translation: what is told of it while it is made, in order of items and sentences.

A plan and its rounds flow in; drafts, final sentences and final translations flow out. Put together
by a reader who lets each text replace all from its `start` on, the texts of an item are its
translation; those of gaps and of what is not translated come as drafts, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.engine.request import Timing
from app.errors import AppError
from app.metrics import Metrics
from app.tasks.attempts import Candidate
from app.tasks.job import Usage
from app.tasks.pieces import Item, Unit
from app.tasks.plan import Plan
from app.tasks.report import Quality, SentenceQuality, count, merged, quality
from app.tasks.rounds import Rounds
from app.tasks.streams import Draft
from app.text import numbers
from app.text.detect import Detection

Reason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """`score`: the sum of log-probabilities after the length penalty, of all pieces together."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Translation:
    text: str
    source: str
    candidates: tuple[Detection, ...]  # the likeliest language first; none if it was told
    finish_reason: Reason
    truncated: bool
    alternatives: tuple[Alternative, ...]  # best first, none twice; empty if not asked for
    quality: Quality
    error: AppError | None = None  # then there is no text

    @property
    def detected(self) -> Detection | None:
        return self.candidates[0] if self.candidates else None

    @property
    def score(self) -> float | None:
        """Mean log-probability a token; None if nothing was generated."""
        return self.quality.score


@dataclass(frozen=True, slots=True)
class Drafted:
    """The next characters of a sentence; `firm`: they will stay as they are."""

    index: int
    sentence: int
    start: int
    text: str
    firm: bool
    gap: bool = False  # between sentences


@dataclass(frozen=True, slots=True)
class Sentence:
    """A final sentence or, of marked-up text, run of text; `source`: from where to where."""

    index: int
    sentence: int
    source: tuple[int, int]
    start: int
    text: str
    quality: SentenceQuality


@dataclass(frozen=True, slots=True)
class Translated:
    index: int
    translation: Translation


Live = Drafted | Sentence | Translated


@dataclass(slots=True)
class _Writing:
    """An item's translation as far as it is final, and a `gap` that is not told yet."""

    index: int
    read: int = 0  # characters of the source
    sentence: int = 0
    length: int = 0
    parts: list[str] = field(default_factory=list)
    gap: str = ""

    def keep(self, text: str, size: int | None = None) -> None:
        """Text between sentences, of `size` characters of the source."""
        self.gap += text
        self.read += len(text) if size is None else size

    def flush(self, sentence: int) -> list[Drafted]:
        gap, self.gap = self.gap, ""
        start = self._add(gap)
        return [Drafted(self.index, sentence, start, gap, True, True)] if gap else []

    def end(self, text: str, size: int, found: SentenceQuality) -> Sentence:
        """A final sentence."""
        source = self.read, self.read + size
        self.read += size
        self.sentence += 1
        return Sentence(self.index, self.sentence - 1, source, self._add(text), text, found)

    def _add(self, text: str) -> int:
        self.parts.append(text)
        self.length += len(text)
        return self.length - len(text)


class LiveTranslation:
    """`events` must be iterated or `close` called; with the last event `usage` and `timing` are
    complete. Without `drafts` only sentences and what is between them are told."""

    def __init__(
        self,
        plan: Plan,
        rounds: Rounds,
        drafts: Sequence[Draft],
        retry: bool,
        metrics: Metrics,
    ) -> None:
        self._plan = plan
        self._rounds = rounds
        self._drafts = drafts
        self._retry = retry
        self._metrics = metrics

    @property
    def usage(self) -> Usage:
        return self._rounds.usage

    @property
    def timing(self) -> Timing:
        return self._rounds.timing

    def close(self) -> None:
        self._rounds.close()

    async def events(self) -> AsyncIterator[Live]:
        """Leaving this iterator frees the slots."""
        try:
            for index, item in enumerate(self._plan.items):
                async for event in self._item(item, _Writing(index)):
                    yield event
            made = [one for one in self._rounds.made if one]
            count(self._metrics, made, self._rounds.retried)
        finally:
            self.close()

    async def _item(self, item: Item, writing: _Writing) -> AsyncIterator[Live]:
        if not item.pieces:  # where nothing was translated, nothing was touched
            writing.gap = item.raw
        for part in item.parts if item.pieces else ():
            if isinstance(part, str):
                writing.keep(part)
                continue
            unit = self._run(part, item, writing) if item.marked else (
                self._sentences(part, item, writing))  # fmt: skip
            async for event in unit:
                yield event
        for event in writing.flush(max(writing.sentence - 1, 0)):
            yield event
        yield Translated(writing.index, self._translation(item, "".join(writing.parts)))

    async def _sentences(self, unit: Unit, item: Item, writing: _Writing) -> AsyncIterator[Live]:
        """A plain text, sentence by sentence."""
        layout, restore = unit.layout, unit.text.restore
        kept = [None if number is None else "" for number in unit.pieces]
        writing.keep(layout.gaps[0])
        for i, number in enumerate(unit.pieces):
            raw = restore(layout.pieces[i])
            if number is None:
                writing.keep(raw)
            else:
                for event in writing.flush(writing.sentence):
                    yield event
                async for draft in self._drafted(number, writing):
                    yield draft
                found = self._rounds.made[number]
                assert found is not None
                text = self._text(number, found, item)
                yield writing.end(text, len(raw), merged([found]))
            writing.keep(layout.gap_after(i, kept, item.source, self._plan.target),
                         len(layout.gaps[i + 1]))  # fmt: skip

    async def _run(self, unit: Unit, item: Item, writing: _Writing) -> AsyncIterator[Live]:
        """A run of marked-up text, at once."""
        own = [number for number in unit.pieces if number is not None]
        for number in own:
            await self._made(number)
        made = {number: one for number in own if (one := self._rounds.made[number])}
        texts = {number: self._text(number, one, item) for number, one in made.items()}
        text = unit.join(texts, item, self._plan.target)
        if not own:
            writing.keep(text, unit.text.size)
            return
        for event in writing.flush(writing.sentence):
            yield event
        yield writing.end(text, unit.text.size, merged(list(made.values())))

    async def _drafted(self, number: int, writing: _Writing) -> AsyncIterator[Drafted]:
        """What is drafted of a piece until it is final."""
        if not self._drafts:
            await self._made(number)
            return
        rounds, draft, piece = self._rounds, self._drafts[number], self._plan.pieces[number]
        firm = not self._retry and not numbers.find(piece.text.text, piece.languages[0])
        start = writing.length
        while True:
            if first := rounds.first[number]:
                draft.end(self._text(number, first))
            if text := draft.take():
                yield Drafted(writing.index, writing.sentence, start, text, firm)
                start += len(text)
            if rounds.made[number]:
                return
            await rounds.advance()

    async def _made(self, number: int) -> None:
        while not self._rounds.made[number]:
            await self._rounds.advance()

    def _text(
        self, number: int, found: Candidate, item: Item | None = None, output: str | None = None
    ) -> str:
        output = self._plan.written(number, found.output if output is None else output)
        return found.text.restore(output, item.escape if item else str)

    def _translation(self, item: Item, text: str) -> Translation:
        own = {i: made for i in item.pieces if (made := self._rounds.made[i])}
        cut = any("truncated" in one.flags for one in own.values())
        reason: Reason = "error" if item.error else "length" if cut else "stop"
        wanted = self._plan.options.alternatives and not item.error
        return Translation(
            text,
            item.source,
            item.candidates,
            reason,
            truncated=cut,
            alternatives=self._alternatives(item, own) if wanted else (),
            quality=quality(list(own.values())),
            error=item.error,
        )

    def _alternatives(self, item: Item, made: Mapping[int, Candidate]) -> tuple[Alternative, ...]:
        """The item made of the best, the second best ... of each piece, or its last one."""
        scores: dict[str, float] = {}
        for rank in range(max((len(one.hypotheses) for one in made.values()), default=1) or 1):
            texts: dict[int, str] = {}
            total = 0.0
            for i, one in made.items():
                output, score = one.output, 0.0
                if one.hypotheses:
                    output, score = one.hypotheses[min(rank, len(one.hypotheses) - 1)]
                texts[i] = self._text(i, one, item, output)
                total += score
            scores.setdefault(item.join(texts, self._plan.target) if texts else item.raw, total)
        return tuple(Alternative(text, score) for text, score in scores.items())
