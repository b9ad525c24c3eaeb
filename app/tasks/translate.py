"""Texts in, translations out, in order, with their layout and with word of their quality.

Each text is an item: its language is detected if asked for, it is cut into pieces that the model
can take (`app.tasks.pieces`), all pieces of all items go to the engine together, what is flagged
goes there again (`app.tasks.rounds`), and the outputs are put back between what was not
translated. Nothing is cut silently: a piece whose output reached the limit makes its item
`truncated`. By beam search an item can have several translations: the first is made of the best
one of each piece, the next of the second best, and so on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.bundle import Manifest
from app.engine.request import Timing
from app.errors import InvalidField, TooLong, UnknownLanguage
from app.metrics import Metrics
from app.tasks.attempts import Attempts, Candidate
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits, check_texts, names
from app.tasks.job import Deadline, EngineLike, Job, Usage
from app.tasks.languages import served
from app.tasks.options import BOUNDS, PLAIN, TranslateOptions
from app.tasks.pieces import Item, Piece, Unit, bare, lay_out, read
from app.tasks.report import Quality, count, quality
from app.tasks.rounds import Rounds
from app.tasks.shortlist import Shortlist
from app.tasks.streams import PieceStream
from app.text.detect import Detection, Detector
from app.text.protect import Protected
from app.text.segment import translatable
from app.text.tokenizer import TextTokenizer

__all__ = ["AUTO", "BOUNDS", "PLAIN", "TranslateOptions", "TranslateResult", "Translation",
           "Translator"]  # fmt: skip
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Alternative:
    """`score`: the sum of log-probabilities after the length penalty, of all pieces together."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Translation:
    text: str
    source: str
    detected: Detection | None
    finish_reason: Literal["stop", "length"]
    truncated: bool
    alternatives: tuple[Alternative, ...]  # best first, none twice; empty if not asked for
    quality: Quality

    @property
    def score(self) -> float | None:
        """Mean log-probability a token; None if nothing was generated."""
        return self.quality.score


@dataclass(frozen=True, slots=True)
class TranslateResult:
    translations: list[Translation]
    usage: Usage
    timing: Timing


@dataclass(frozen=True, slots=True)
class _Plan:
    target: str
    options: TranslateOptions
    prefix: tuple[int, ...]
    items: list[Item] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


class Translator:
    """The task `translate` over an engine, a tokenizer and a bundle's pairs.

    Without `retry` nothing is tried again, whatever a request says.
    """

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: TextTokenizer,
        detector: Detector,
        manifest: Manifest,
        limits: TaskLimits,
        metrics: Metrics,
        retry: bool = True,
        shortlist: Shortlist | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._detector = detector
        self._languages = manifest.languages
        self._pairs = frozenset(manifest.pairs)
        self._limits = limits
        self._metrics = metrics
        self._retry = retry
        self._shortlist = shortlist

    async def run(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        deadline: Deadline,
        progress: Callable[[int, int], None] | None = None,
        options: TranslateOptions = PLAIN,
        *,
        param: str = "text",
        unchanged: bool = False,
    ) -> TranslateResult:
        """Translate; `progress` is called with the pieces done and the pieces in all.

        Errors name the texts `param`. With `unchanged`, blank texts alone and a language into
        itself are no error: such texts come back as they are.
        """
        plan = await self._prepare(texts, source, target, options, param, unchanged)
        attempts = Attempts(self._tokenizer, self._limits, options, self._shortlist)
        rounds = Rounds(self._engine, attempts, plan.pieces, options, self._limits, deadline)
        made = await rounds.run(self._retry and options.retry, progress)
        count(self._metrics, made, rounds.retried)
        translations = [self._assemble(item, plan, made) for item in plan.items]
        return TranslateResult(translations, rounds.usage, rounds.timing)

    async def stream(
        self,
        text: str,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions = PLAIN,
    ) -> AsyncIterator[str]:
        """The translation of one text, in order: as it is generated where nothing is to be tried
        again, which only a plain text without `retry` is sure of; else all at once."""
        if (self._retry and options.retry) or options.format != "text":
            result = await self.run(text, source, target, deadline, options=options)
            yield result.translations[0].text
            return
        plan = await self._prepare(text, source, target, options)
        unit = plan.items[0].parts[0]
        assert isinstance(unit, Unit)
        attempts = Attempts(self._tokenizer, self._limits, options, self._shortlist)
        streams: list[PieceStream] = []
        requests = []
        owners: list[PieceStream] = []
        for i, piece in enumerate(plan.pieces):
            beam = options.search if i == 0 or not options.branch else None
            attempt = attempts.first(i, piece)
            own = attempts.requests(attempt, piece, beam)
            streams.append(PieceStream(self._tokenizer, attempts, attempt, piece, len(own)))
            owners += [streams[-1]] * len(own)
            requests += own
        kept = [None if i is None else "" for i in unit.pieces]
        yield unit.layout.gaps[0]
        with Job(self._engine, requests, deadline, tokens=True) as job:
            events = job.events()
            starts = [owners.index(stream) for stream in streams]
            for at, number in enumerate(unit.pieces):
                if number is None:
                    yield unit.text.restore(unit.layout.pieces[at])
                else:
                    while not (current := streams[number]).ended:
                        yield current.take()
                        i, event = await anext(events)
                        owners[i].push(i - starts[owners[i].number], event)
                    yield current.take()
                yield unit.layout.gap_after(at, kept, plan.items[0].source, plan.target)

    async def _prepare(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions,
        param: str = "text",
        unchanged: bool = False,
    ) -> _Plan:
        source, target = self.pair(source, target, unchanged)
        items = check_texts(texts, self._limits, param)
        if not unchanged and not any(item.strip() for item in items):
            raise InvalidField(f"{param} is empty: there is nothing to translate", param=param)
        fields = names(texts, param)
        if options.prefix and not isinstance(texts, str):
            raise InvalidField("prefix belongs to one text: text is an array", param="prefix")
        check_texts(options.prefix, self._limits, "prefix")
        if sum(map(len, items)) + len(options.prefix) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self._plan, items, fields, source, target, options)
        return self._plan(items, fields, source, target, options)

    def pair(self, source: str, target: str, unchanged: bool = False) -> tuple[str, str]:
        """The served codes that are meant; `auto` stays what it is."""
        targets = sorted({t for _, t in self._pairs})
        found = served(target, targets)
        if found is None:
            raise UnknownLanguage(
                f"target {target!r} is not served; served are {_listed(targets)}", param="target"
            )
        sources = [
            s for s in self._languages if (s, found) in self._pairs or (unchanged and s == found)
        ]
        origin = AUTO if source.casefold() == AUTO else served(source, sources)
        if origin is None:
            raise UnknownLanguage(
                f"source {source!r} is not served for target {target!r}; "
                f"served are {_listed([AUTO, *sources])}",
                param="source",
            )
        return origin, found

    def detect(self, text: str, target: str) -> Detection:
        """The language of a text that is to be translated, or is in the target language already."""
        among = [c for c in self._languages if (c, target) in self._pairs or c == target]
        return self._detector.detect(text, among)

    def _plan(
        self,
        items: Sequence[str],
        fields: Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions,
    ) -> _Plan:
        # Words bring the space before them: one behind the prefix would belong to the next word.
        prefix = self._tokenizer.encode(options.prefix.strip(), param="prefix")
        plan = _Plan(target, options, tuple(prefix))
        for item, param in zip(items, fields, strict=True):
            plan.items.append(self._plan_item(item, param, source, plan))
        if prefix and not plan.pieces:
            raise InvalidField("prefix is given, and text needs no translation", param="prefix")
        return plan

    def _plan_item(self, text: str, param: str, source: str, plan: _Plan) -> Item:
        parts = read(text, plan.options.format, param)
        detected = None
        if source == AUTO:
            # A text that is in the target language already is answered unchanged.
            target = plan.target
            among = [c for c in self._languages if (c, target) in self._pairs or c == target]
            words = " ".join(bare(p, p.text) for p in parts if isinstance(p, Protected))
            detected = self._detector.detect(words, among)
            source = detected.language
        units = tuple(
            part if isinstance(part, str) else self._plan_unit(part, param, source, plan)
            for part in parts
        )
        return Item(text, source, detected, plan.options.format != "text", units)

    def _plan_unit(self, text: Protected, param: str, source: str, plan: _Plan) -> Unit:
        overhead = self._tokenizer.overhead("translate")
        # a third for the source leaves twice as much for the output
        limit = min(
            (self._limits.context - overhead) // 3, self._limits.max_prompt_tokens - overhead
        )
        most = max(self._limits.max_pieces // plan.options.beam, 1)
        layout = lay_out(text, source, lambda piece: self._tokenizer.count(piece) <= limit)
        numbers: list[int | None] = []
        for piece in layout.pieces:
            if not translatable(piece) or (source, plan.target) not in self._pairs:
                numbers.append(None)
                continue
            numbers.append(len(plan.pieces))
            forced = () if plan.pieces else plan.prefix
            own = Protected(piece, text.spans)
            tokens = self._tokenizer.count(bare(own, piece))
            plan.pieces.append(Piece(own, param, (source, plan.target), tokens, forced))
            if len(plan.pieces) > most:
                raise TooLong(
                    f"{param} has more than {most} sentences and lines in all", param=param
                )
        return Unit(text, layout, tuple(numbers))

    def _assemble(self, item: Item, plan: _Plan, made: Sequence[Candidate]) -> Translation:
        own = {i: made[i] for i in item.pieces}
        text = item.raw  # where nothing was translated, nothing was touched
        if own:
            text = item.join({i: (c.text, c.output) for i, c in own.items()}, plan.target)
        cut = any("truncated" in one.flags for one in own.values())
        return Translation(
            text,
            item.source,
            item.detected,
            "length" if cut else "stop",
            truncated=cut,
            alternatives=self._alternatives(item, plan, own) if plan.options.alternatives else (),
            quality=quality(list(own.values())),
        )

    def _alternatives(
        self, item: Item, plan: _Plan, made: dict[int, Candidate]
    ) -> tuple[Alternative, ...]:
        """The item made of the best, the second best ... of each piece, or its last one."""
        scores: dict[str, float] = {}
        for rank in range(max((len(one.hypotheses) for one in made.values()), default=1) or 1):
            parts: dict[int, tuple[Protected, str]] = {}
            total = 0.0
            for i, one in made.items():
                output, score = one.output, 0.0
                if one.hypotheses:
                    output, score = one.hypotheses[min(rank, len(one.hypotheses) - 1)]
                parts[i] = one.text, output
                total += score
            scores.setdefault(item.join(parts, plan.target) if parts else item.raw, total)
        return tuple(Alternative(text, score) for text, score in scores.items())


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(value) for value in values) or "none"
