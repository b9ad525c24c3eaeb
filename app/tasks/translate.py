"""Texts in, translations out, in order, with their layout.

Each text is an item: its language is detected if asked for, it is cut into pieces that the model
can take, all pieces of all items go to the engine in one submission, and the outputs are put back
between the item's own white space and line breaks. Nothing is cut silently: a piece whose output
reached the limit makes its item `truncated`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from app.bundle import Manifest
from app.engine.request import Finished, Request, Sampling, Timing, Token
from app.errors import InvalidField, NotReady, TooLong, UnknownLanguage
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits, check_texts, names
from app.tasks.job import Deadline, EngineLike, Job, Usage, slowest, unheard
from app.tasks.languages import served
from app.text.detect import Detection, Detector
from app.text.segment import Layout, layout, translatable
from app.text.tokenizer import Detokenizer, TextTokenizer

AUTO = "auto"
# Greedy; a translation that falls into a loop would otherwise run to its limit. Three times are
# free and the source's own repetitions are followed: numbers and emoji repeat their tokens rightly.
SAMPLING = Sampling(no_repeat_ngram=3, ngram_repeats=3)


@dataclass(frozen=True, slots=True)
class Translation:
    text: str
    source: str
    detected: Detection | None
    finish_reason: Literal["stop", "length"]
    truncated: bool


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
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._detector = detector
        self._languages = manifest.languages
        self._pairs = frozenset(manifest.pairs)
        self._limits = limits

    async def run(
        self,
        texts: str | Sequence[str],
        source: str,
        target: str,
        deadline: Deadline,
        progress: Callable[[int, int], None] | None = None,
    ) -> TranslateResult:
        """Translate; `progress` is called with the pieces done and the pieces in all."""
        plan = await self._prepare(texts, source, target)
        ids: list[list[int]] = [[] for _ in plan.requests]
        ends: dict[int, Finished] = {}
        with Job(self._engine, plan.requests, deadline) as job:
            async for i, event in job.events():
                if isinstance(event, Token):
                    ids[i].append(event.id)
                    continue
                ends[i] = _checked(event)
                if progress:
                    progress(len(ends), len(plan.requests))
        outputs = [self._tokenizer.decode(tokens).strip() for tokens in ids]
        return TranslateResult(
            [self._assemble(item, plan.target, outputs, ends) for item in plan.items],
            Usage(plan.prompt_tokens, sum(map(len, ids))),
            slowest([end.timing for end in ends.values()]),
        )

    async def stream(
        self, text: str, source: str, target: str, deadline: Deadline
    ) -> AsyncIterator[str]:
        """The translation of one text, in order, as it is generated."""
        plan = await self._prepare(text, source, target)
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

    async def _prepare(self, texts: str | Sequence[str], source: str, target: str) -> _Plan:
        source, target = self.pair(source, target)
        items = check_texts(texts, self._limits, "text")
        if not any(item.strip() for item in items):
            raise InvalidField("text is empty: there is nothing to translate", param="text")
        fields = names(texts, "text")
        if sum(map(len, items)) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self._plan, items, fields, source, target)
        return self._plan(items, fields, source, target)

    def pair(self, source: str, target: str) -> tuple[str, str]:
        """The served codes that are meant; `auto` stays what it is."""
        targets = sorted({t for _, t in self._pairs})
        found = served(target, targets)
        if found is None:
            raise UnknownLanguage(
                f"target {target!r} is not served; served are {_listed(targets)}", param="target"
            )
        sources = [s for s in self._languages if (s, found) in self._pairs]
        origin = AUTO if source.casefold() == AUTO else served(source, sources)
        if origin is None:
            raise UnknownLanguage(
                f"source {source!r} is not served for target {target!r}; "
                f"served are {_listed([AUTO, *sources])}",
                param="source",
            )
        return origin, found

    def _plan(self, items: Sequence[str], fields: Sequence[str], source: str, target: str) -> _Plan:
        # A text that is in the target language already is answered unchanged.
        among = [c for c in self._languages if (c, target) in self._pairs or c == target]
        plan = _Plan(target, [], [])
        for item, field in zip(items, fields, strict=True):
            detected = self._detector.detect(item, among) if source == AUTO else None
            language = detected.language if detected else source
            plan.items.append(self._plan_item(item, field, language, detected, plan))
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
            room = min(3 * len(ids) + 32, self._limits.context - len(prompt))
            sequences.append(len(plan.requests))
            request = Request(prompt, room, unheard, self._tokenizer.end_ids, SAMPLING)
            plan.requests.append(request)
            if len(plan.requests) > self._limits.max_pieces:
                raise TooLong(
                    f"{field} has more than {self._limits.max_pieces} sentences and lines in all",
                    param=field,
                )
        return _Item(cut, source, detected, tuple(sequences))

    def _assemble(
        self, item: _Item, target: str, outputs: Sequence[str], ends: dict[int, Finished]
    ) -> Translation:
        parts = [None if i is None else outputs[i] for i in item.sequences]
        cut = any(i is not None and ends[i].reason == "length" for i in item.sequences)
        return Translation(
            item.layout.join(parts, item.source, target),
            item.source,
            item.detected,
            "length" if cut else "stop",
            truncated=cut,
        )


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


def _checked(end: Finished) -> Finished:
    if end.reason == "cancelled":  # not by us: the engine is stopping
        raise NotReady("the server is shutting down", retry_after_s=1)
    return end


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(value) for value in values) or "none"
