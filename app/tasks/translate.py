"""Texts in, translations out, in order, with their layout.

Each text is an item: its language is detected if asked for, it is cut into pieces that the model
can take, all pieces of all items go to the engine in one submission, and the outputs are put back
between the item's own white space and line breaks. Nothing is cut silently: a piece whose output
reached the limit makes its item `truncated`. By beam search an item can have several translations:
the first is made of the best one of each piece, the next of the second best, and so on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from app.bundle import Manifest
from app.engine.request import Beam, Finished, Request, Sampling, Timing, Token
from app.errors import InvalidField, NotReady, TooLong, UnknownLanguage
from app.tasks.inputs import INLINE_CHARACTERS, Bounds, TaskLimits, check_texts, names
from app.tasks.job import Deadline, EngineLike, Job, Usage, slowest, unheard
from app.tasks.languages import served
from app.tasks.shortlist import Shortlist
from app.text.detect import Detection, Detector
from app.text.segment import Layout, layout, translatable
from app.text.tokenizer import Detokenizer, TextTokenizer

AUTO = "auto"
# Greedy; a translation that falls into a loop would otherwise run to its limit. Three times are
# free and the source's own repetitions are followed: numbers and emoji repeat their tokens rightly.
SAMPLING = Sampling(no_repeat_ngram=3, ngram_repeats=3)
BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {"beam": Bounds(1, 8), "length_penalty": Bounds(0, 5), "alternatives": Bounds(0, 8)}
)


@dataclass(frozen=True, slots=True)
class TranslateOptions:
    """How to search; a value out of bounds is refused by name. With `beam` 1 it is greedy.

    `alternatives` (at most `beam`) are told beside the translation, itself the first of them. The
    translation begins with `prefix`, which ends where a word ends and belongs to one text. With
    `branch` the alternatives differ in their first word after it, each then greedy; of a text of
    several sentences the first one has them.
    """

    beam: int = 1
    length_penalty: float = 1.0
    alternatives: int = 0
    prefix: str = ""
    branch: bool = False

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            bounds.check(name, getattr(self, name))
        if self.alternatives > self.beam:
            raise InvalidField(
                f"alternatives is {self.alternatives}: must be at most beam, which is {self.beam}",
                param="alternatives",
            )
        if self.branch and self.alternatives < 2:
            raise InvalidField(
                f"alternatives is {self.alternatives}: must be at least 2 with branch",
                param="alternatives",
            )

    @property
    def search(self) -> Beam | None:
        if self.beam == 1 and not self.alternatives:
            return None
        best = max(self.alternatives, 1)
        return Beam(self.beam, self.length_penalty, best=best, branch=self.branch)


PLAIN = TranslateOptions()


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
    score: float | None = None  # mean log-probability a token; None if nothing was generated


@dataclass(frozen=True, slots=True)
class TranslateResult:
    translations: list[Translation]
    usage: Usage
    timing: Timing


@dataclass(frozen=True, slots=True)
class _Item:
    layout: Layout
    source: str
    detected: Detection | None
    sequences: tuple[int | None, ...]  # of each piece, its request; None: kept as it is


@dataclass(frozen=True, slots=True)
class _Plan:
    target: str
    options: TranslateOptions
    prefix: tuple[int, ...]
    items: list[_Item]
    requests: list[Request]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


class Translator:
    """The task `translate` over an engine, a tokenizer and a bundle's pairs."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: TextTokenizer,
        detector: Detector,
        manifest: Manifest,
        limits: TaskLimits,
        shortlist: Shortlist | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._detector = detector
        self._languages = manifest.languages
        self._pairs = frozenset(manifest.pairs)
        self._limits = limits
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
        tokens: list[list[Token]] = [[] for _ in plan.requests]
        ends: dict[int, Finished] = {}
        with Job(self._engine, plan.requests, deadline) as job:
            async for i, event in job.events():
                if isinstance(event, Token):
                    tokens[i].append(event)
                    continue
                ends[i] = _checked(event)
                if progress:
                    progress(len(ends), len(plan.requests))
        outputs = [self._tokenizer.decode([t.id for t in of]).strip() for of in tokens]
        return TranslateResult(
            [
                replace(self._assemble(item, plan, outputs, ends), score=_score(item, tokens))
                for item in plan.items
            ],
            Usage(plan.prompt_tokens, sum(map(len, tokens))),
            slowest([end.timing for end in ends.values()]),
        )

    async def stream(
        self,
        text: str,
        source: str,
        target: str,
        deadline: Deadline,
        options: TranslateOptions = PLAIN,
    ) -> AsyncIterator[str]:
        """The translation of one text, in order, as it is generated; by beam, piece by piece."""
        plan = await self._prepare(text, source, target, options)
        item = plan.items[0]
        kept = [None if i is None else "" for i in item.sequences]
        streams = [_PieceStream(self._tokenizer.detokenizer()) for _ in plan.requests]
        yield item.layout.gaps[0]
        with Job(self._engine, plan.requests, deadline, tokens=True) as job:
            events = job.events()
            for at, sequence in enumerate(item.sequences):
                if sequence is None:
                    yield item.layout.pieces[at]
                else:
                    while not (current := streams[sequence]).ended:
                        yield current.take()
                        i, event = await anext(events)
                        streams[i].push(event)
                    yield current.take()
                yield item.layout.gap_after(at, kept, item.source, plan.target)

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

    def _plan(
        self,
        items: Sequence[str],
        fields: Sequence[str],
        source: str,
        target: str,
        options: TranslateOptions,
    ) -> _Plan:
        # A text that is in the target language already is answered unchanged.
        among = [c for c in self._languages if (c, target) in self._pairs or c == target]
        # Words bring the space before them: one behind the prefix would belong to the next word.
        prefix = self._tokenizer.encode(options.prefix.strip(), param="prefix")
        plan = _Plan(target, options, tuple(prefix), [], [])
        for item, field in zip(items, fields, strict=True):
            detected = self._detector.detect(item, among) if source == AUTO else None
            language = detected.language if detected else source
            plan.items.append(self._plan_item(item, field, language, detected, plan))
        if prefix and not plan.requests:
            raise InvalidField("prefix is given, and text needs no translation", param="prefix")
        return plan

    def _plan_item(
        self, text: str, field: str, source: str, detected: Detection | None, plan: _Plan
    ) -> _Item:
        overhead = self._tokenizer.overhead("translate")
        # a third for the source leaves twice as much for the output
        limit = min(
            (self._limits.context - overhead) // 3, self._limits.max_prompt_tokens - overhead
        )

        def fits(piece: str) -> bool:
            return not translatable(piece) or self._tokenizer.count(piece) <= limit

        cut = layout(text, source, fits)
        sequences: list[int | None] = []
        for piece in cut.pieces:
            if not translatable(piece) or (source, plan.target) not in self._pairs:
                sequences.append(None)
                continue
            ids = self._tokenizer.encode(piece, param=field)
            prompt = self._tokenizer.translation_prompt(source, plan.target, ids)
            first = not plan.requests
            forced = plan.prefix if first else ()
            room = min(3 * len(ids) + 32 + len(forced), self._limits.context - len(prompt))
            sequences.append(len(plan.requests))
            listed = self._shortlist
            request = Request(
                prompt,
                room,
                unheard,
                self._tokenizer.end_ids,
                SAMPLING,
                forced=forced,
                beam=plan.options.search if first or not plan.options.branch else None,
                candidates=listed.candidates(source, plan.target, ids) if listed else None,
            )
            plan.requests.append(request)
            most = max(self._limits.max_pieces // plan.options.beam, 1)
            if len(plan.requests) > most:
                raise TooLong(
                    f"{field} has more than {most} sentences and lines in all", param=field
                )
        return _Item(cut, source, detected, tuple(sequences))

    def _assemble(
        self, item: _Item, plan: _Plan, outputs: Sequence[str], ends: dict[int, Finished]
    ) -> Translation:
        parts = [None if i is None else outputs[i] for i in item.sequences]
        cut = any(i is not None and ends[i].reason == "length" for i in item.sequences)
        return Translation(
            item.layout.join(parts, item.source, plan.target),
            item.source,
            item.detected,
            "length" if cut else "stop",
            truncated=cut,
            alternatives=self._alternatives(item, plan, outputs, ends),
        )

    def _alternatives(
        self, item: _Item, plan: _Plan, outputs: Sequence[str], ends: dict[int, Finished]
    ) -> tuple[Alternative, ...]:
        """The item made of the best, the second best ... of each piece, or its last one."""
        if not plan.options.alternatives:
            return ()
        found = [() if i is None else ends[i].hypotheses for i in item.sequences]
        scores: dict[str, float] = {}
        for rank in range(max(map(len, found), default=1) or 1):
            parts: list[str | None] = []
            total = 0.0
            for i, hypotheses in zip(item.sequences, found, strict=True):
                if not hypotheses:
                    parts.append(None if i is None else outputs[i])
                    continue
                one = hypotheses[min(rank, len(hypotheses) - 1)]
                parts.append(self._tokenizer.decode(one.ids).strip())
                total += one.score
            scores.setdefault(item.layout.join(parts, item.source, plan.target), total)
        return tuple(Alternative(text, score) for text, score in scores.items())


class _PieceStream:
    """The output of one piece as it comes, without white space around it."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._text = ""
        self._begun = False
        self.ended = False

    def push(self, event: Token | Finished) -> None:
        if isinstance(event, Token):
            self._text += self._detokenizer.push(event.id)
            return
        _checked(event)
        self._text = (self._text + self._detokenizer.finish()).rstrip()
        self.ended = True

    def take(self) -> str:
        """What is certain and was not taken before; white space may yet prove to be the end."""
        if not self._begun:
            self._text = self._text.lstrip()
        ready = self._text.rstrip()
        self._begun = self._begun or bool(ready)
        self._text = self._text[len(ready) :]
        return ready


def _score(item: _Item, tokens: Sequence[Sequence[Token]]) -> float | None:
    logprobs = [t.logprob for i in item.sequences if i is not None for t in tokens[i]]
    return sum(logprobs) / len(logprobs) if logprobs else None


def _checked(end: Finished) -> Finished:
    if end.reason == "cancelled":  # not by us: the engine is stopping
        raise NotReady("the server is shutting down", retry_after_s=1)
    return end


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(value) for value in values) or "none"
