"""Prompts in, continuations out: whole, or piece by piece while they are generated.

With seed s, prompt i of an array samples with seed (s + i) modulo 2**32: the same as that prompt
alone with that seed. Without a seed one is drawn for the request. Stop strings are looked for in
the text, across token borders; the match and all behind it are withheld and the slot is freed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from app.engine.request import Request, Sampling, Timing, Token
from app.errors import InvalidField, NotReady, TooLong
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits, check_texts, names
from app.tasks.job import Deadline, EngineLike, Job, Usage, slowest, unheard
from app.text.stop import StopFinder
from app.text.tokenizer import TextTokenizer

SEEDS = 2**32
MAX_STOPS = 16
MAX_STOP_LENGTH = 200  # characters
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be; the HTTP schema is made of the same."""

    low: int
    high: int
    above: bool = False  # the lowest value itself is refused

    def check(self, name: str, value: float) -> None:
        if value < self.low or (self.above and value == self.low):
            wanted = f"more than {self.low}" if self.above else f"at least {self.low}"
        elif value > self.high:
            wanted = f"at most {self.high}"
        elif value != value:
            wanted = "a number"
        else:
            return
        raise InvalidField(f"{name} is {value}: must be {wanted}", param=name)


BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "max_tokens": Bounds(1, 1_000_000),
        "temperature": Bounds(0, 5),
        "top_k": Bounds(0, 1_000_000),
        "top_p": Bounds(0, 1, above=True),
        "repetition_penalty": Bounds(0, 10, above=True),
        "seed": Bounds(0, SEEDS - 1),
    }
)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What may be chosen for a generation; a value out of bounds is refused by name."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                bounds.check(name, value)
        if len(self.stop) > MAX_STOPS:
            raise InvalidField(
                f"stop has {len(self.stop)} strings: must be at most {MAX_STOPS}", param="stop"
            )
        for i, text in enumerate(self.stop):
            if not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise InvalidField(
                    f"stop[{i}] has {len(text)} characters: must be 1 to {MAX_STOP_LENGTH}",
                    param=f"stop[{i}]",
                )


def default_temperature(top_k: int | None, top_p: float | None, seed: int | None) -> float:
    """Greedy, unless one of the options that only mean something for sampling is given."""
    return 0.0 if top_k is None and top_p is None and seed is None else 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """More text of prompt `index`; the last one of a prompt carries its finish reason."""

    index: int
    text: str
    finish_reason: Finish | None


@dataclass(frozen=True, slots=True)
class Generation:
    text: str
    finish_reason: Finish


@dataclass(frozen=True, slots=True)
class GenerateResult:
    generations: list[Generation]
    usage: Usage
    timing: Timing


class Generator:
    """The task `generate` over an engine and a tokenizer."""

    def __init__(self, engine: EngineLike, tokenizer: TextTokenizer, limits: TaskLimits) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits

    async def run(
        self, prompts: str | Sequence[str], options: GenerateOptions, deadline: Deadline
    ) -> GenerateResult:
        stream = await self.start(prompts, options, deadline, tokens=bool(options.stop))
        texts: list[list[str]] = [[] for _ in range(stream.count)]
        reasons: list[Finish] = ["stop"] * stream.count
        async for chunk in stream.chunks():
            texts[chunk.index].append(chunk.text)
            if chunk.finish_reason:
                reasons[chunk.index] = chunk.finish_reason
        generations = [Generation("".join(t), r) for t, r in zip(texts, reasons, strict=True)]
        return GenerateResult(generations, stream.usage, stream.timing)

    async def start(
        self,
        prompts: str | Sequence[str],
        options: GenerateOptions,
        deadline: Deadline,
        *,
        tokens: bool = True,
    ) -> GenerationStream:
        """Submit; the caller must iterate `chunks()` or call `close()`."""
        items = check_texts(prompts, self._limits, "prompt")
        fields = names(prompts, "prompt")
        if sum(map(len, items)) > INLINE_CHARACTERS:
            requests = await asyncio.to_thread(self._requests, items, fields, options)
        else:
            requests = self._requests(items, fields, options)
        job = Job(self._engine, requests, deadline, tokens=tokens)
        return GenerationStream(job, requests, self._tokenizer, options.stop)

    def _requests(
        self, items: Sequence[str], fields: Sequence[str], options: GenerateOptions
    ) -> list[Request]:
        seed = secrets.randbelow(SEEDS) if options.seed is None else options.seed
        requests = []
        for i, (item, field) in enumerate(zip(items, fields, strict=True)):
            if not item:
                raise InvalidField(f"{field} is empty", param=field)
            ids = self._tokenizer.generation_prompt(self._tokenizer.encode(item, param=field))
            room = min(self._limits.max_prompt_tokens, self._limits.context - 1)
            if len(ids) > room:
                raise TooLong(f"{field} has {len(ids)} tokens, at most {room} fit", param=field)
            sampling = Sampling(
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                repetition_penalty=options.repetition_penalty,
                seed=(seed + i) % SEEDS,
            )
            max_tokens = min(options.max_tokens, self._limits.context - len(ids))
            requests.append(Request(ids, max_tokens, unheard, self._tokenizer.end_ids, sampling))
        return requests


class GenerationStream:
    """A running generation. `usage` and `timing` are complete when `chunks()` has ended."""

    def __init__(
        self,
        job: Job,
        requests: Sequence[Request],
        tokenizer: TextTokenizer,
        stops: tuple[str, ...],
    ) -> None:
        self.count = len(requests)
        self._job = job
        self._prompt_tokens = sum(len(request.prompt) for request in requests)
        self._detokenizers = [tokenizer.detokenizer() for _ in requests]
        self._finders = [StopFinder(stops) for _ in requests]
        self._completion_tokens = 0
        self._timings: list[Timing] = []

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._completion_tokens)

    @property
    def timing(self) -> Timing:
        return slowest(self._timings)

    def close(self) -> None:
        self._job.close()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Text as it becomes certain; leaving this iterator frees the slots."""
        with self._job:
            async for i, event in self._job.events():
                finder, detokenizer = self._finders[i], self._detokenizers[i]
                if isinstance(event, Token):
                    if finder.found:
                        continue  # came between the match and the cancellation
                    self._completion_tokens += 1
                    text = finder.push(detokenizer.push(event.id))
                    if finder.found:
                        self._job.cancel(i)
                        yield Chunk(i, text, "stop")
                    elif text:
                        yield Chunk(i, text, None)
                    continue
                self._timings.append(event.timing)
                if finder.found:
                    continue
                if event.reason == "cancelled":
                    raise NotReady("the server is shutting down", retry_after_s=1)
                text = finder.push(detokenizer.finish()) + finder.finish()
                yield Chunk(i, text, "stop" if finder.found else event.reason)
