"""Prompts in, continuations out: whole, or piece by piece while they are generated.

With seed s, generation i of a request samples with seed (s + i) modulo 2**32: the same as that
prompt alone with that seed; each of the prompts has `n` generations, one behind the other. Without
a seed one is drawn for the request. Stop strings are looked for in the text, across token borders;
the match (unless `keep_stop`) and all behind it are withheld and the slot is freed.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from app.engine.request import Request, Sampling, Timing, Token
from app.errors import InvalidField, NotReady, TooLong
from app.tasks.inputs import INLINE_CHARACTERS, Bounds, TaskLimits, check_texts, free, names
from app.tasks.job import Deadline, EngineLike, Job, Usage, slowest, unheard
from app.text.stop import StopFinder
from app.text.tokenizer import TextTokenizer

SEEDS = 2**32
MAX_STOPS = 16
MAX_STOP_LENGTH = 200  # characters
MAX_BIASES = 1024
BIAS = Bounds(-100, 100)
Finish = Literal["stop", "length"]


BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "max_tokens": Bounds(1, 1_000_000),
        "temperature": Bounds(0, 5),
        "top_k": Bounds(0, 1_000_000),
        "top_p": Bounds(0, 1, above=True),
        "min_p": Bounds(0, 1),
        "repetition_penalty": Bounds(0, 10, above=True),
        "presence_penalty": Bounds(-2, 2),
        "frequency_penalty": Bounds(-2, 2),
        "min_tokens": Bounds(0, 1_000_000),
        "seed": Bounds(0, SEEDS - 1),
        "logprobs": Bounds(0, 20),
        "n": Bounds(1, 128),
    }
)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What may be chosen for a generation; a value out of bounds is refused by name."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # alternatives told at each token; None: not even its own
    n: int = 1  # generations of each prompt
    truncate: int | None = None  # of each prompt only so many last tokens are read; None: all
    keep_stop: bool = False  # the text ends with the stop string that ended it
    task: str = ""  # answers each prompt as a text-to-text task of the model, not by its rest

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                bounds.check(name, value)
        if self.min_tokens > self.max_tokens:
            raise InvalidField(
                f"min_tokens is {self.min_tokens}: max_tokens is {self.max_tokens}",
                param="min_tokens",
            )
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidField(
                f"logit_bias has {len(self.logit_bias)} ids: must be at most {MAX_BIASES}",
                param="logit_bias",
            )
        for token, bias in self.logit_bias:
            BIAS.check(f"logit_bias.{token}", bias)
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


def default_temperature(*options: float | None) -> float:
    """Greedy, unless one of the options that only mean something for sampling is given."""
    return 0.0 if all(option is None for option in options) else 1.0


@dataclass(frozen=True, slots=True)
class Scored:
    """A generated token, its log-probability and the likeliest ones (id, text, log-probability)."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]
    offset: int  # characters of the generation's text before it


@dataclass(frozen=True, slots=True)
class Chunk:
    """More text of generation `index`; the last one of it carries its finish reason."""

    index: int
    text: str
    finish_reason: Finish | None
    tokens: tuple[Scored, ...] = ()  # those of the text, if log-probabilities are asked for
    matched: bool = False  # a stop string ended it


@dataclass(frozen=True, slots=True)
class Generation:
    text: str
    finish_reason: Finish
    tokens: tuple[Scored, ...] | None  # None: log-probabilities are not asked for
    matched: bool = False  # a stop string ended it

    @property
    def score(self) -> float:
        """The mean log-probability a token, by which completions of a prompt are ranked."""
        logprobs = [token.logprob for token in self.tokens or ()]
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf


@dataclass(frozen=True, slots=True)
class GenerateResult:
    generations: list[Generation]
    usage: Usage
    timing: Timing


class Generator:
    """The task `generate` over an engine and a tokenizer."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: TextTokenizer,
        limits: TaskLimits,
        charge: Callable[[int], None] = free,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._charge = charge

    def metered(self, charge: Callable[[int], None]) -> Generator:
        """The same, with the characters of each request told before it is worked on."""
        return Generator(self._engine, self._tokenizer, self._limits, charge)

    async def run(
        self,
        prompts: str | Sequence[str],
        options: GenerateOptions,
        deadline: Deadline,
        param: str = "prompt",
    ) -> GenerateResult:
        needed = bool(options.stop)
        stream = await self.start(prompts, options, deadline, param, tokens=needed)
        chunks: list[list[Chunk]] = [[] for _ in range(stream.count)]
        async for chunk in stream.chunks():
            chunks[chunk.index].append(chunk)
        generations = []
        for mine in chunks:
            tokens = tuple(token for chunk in mine for token in chunk.tokens)
            text, reason = "".join(chunk.text for chunk in mine), mine[-1].finish_reason or "stop"
            told = None if options.logprobs is None else tokens
            generations.append(Generation(text, reason, told, mine[-1].matched))
        return GenerateResult(generations, stream.usage, stream.timing)

    async def start(
        self,
        prompts: str | Sequence[str],
        options: GenerateOptions,
        deadline: Deadline,
        param: str = "prompt",
        *,
        tokens: bool = True,
    ) -> GenerationStream:
        """Submit; the caller must iterate `chunks()` or call `close()`. Errors say `param`."""
        if options.task and options.task not in (known := self._tokenizer.tasks()):
            raise InvalidField(
                f"task is {options.task!r}: this model knows {', '.join(known) or 'none'}",
                param="task",
            )
        items = check_texts(prompts, self._limits, param)
        fields = names(prompts, param)
        if len(items) * options.n > self._limits.max_items:
            raise InvalidField(
                f"n is {options.n} for {len(items)} prompts, at most {self._limits.max_items} "
                "generations are allowed",
                param="n",
            )
        self._charge(characters := sum(map(len, items)))
        if characters > INLINE_CHARACTERS:
            requests = await asyncio.to_thread(self._requests, items, fields, options)
        else:
            requests = self._requests(items, fields, options)
        job = Job(self._engine, requests, deadline, tokens=tokens)
        return GenerationStream(job, requests, self._tokenizer, options)

    def spans(self, text: str, param: str) -> list[tuple[int, int, int]]:
        """The tokens of a text, without those that the prompt adds: id, and from and to where."""
        check_texts(text, self._limits, param)
        return self._tokenizer.spans(text, param=param)

    def _requests(
        self, items: Sequence[str], fields: Sequence[str], options: GenerateOptions
    ) -> list[Request]:
        seed = secrets.randbelow(SEEDS) if options.seed is None else options.seed
        sampling = Sampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=options.logit_bias,
            min_tokens=options.min_tokens,
            logprobs=options.logprobs or 0,
        )
        requests: list[Request] = []
        for item, field in zip(items, fields, strict=True):
            if not item:
                raise InvalidField(f"{field} is empty", param=field)
            text = self._tokenizer.encode(item, param=field)
            if options.truncate is not None:
                text = text[-options.truncate :]
            ids = self._tokenizer.generation_prompt(text, options.task)
            room = min(self._limits.max_prompt_tokens, self._limits.context - 1)
            if len(ids) > room:
                raise TooLong(f"{field} has {len(ids)} tokens, at most {room} fit", param=field)
            max_tokens = min(options.max_tokens, self._limits.context - len(ids))
            for _ in range(options.n):
                mine = replace(sampling, seed=(seed + len(requests)) % SEEDS)
                requests.append(Request(ids, max_tokens, unheard, self._tokenizer.end_ids, mine))
        return requests


class GenerationStream:
    """A running generation. `usage` and `timing` are complete when `chunks()` has ended."""

    def __init__(
        self,
        job: Job,
        requests: Sequence[Request],
        tokenizer: TextTokenizer,
        options: GenerateOptions,
    ) -> None:
        self.count = len(requests)
        self._job = job
        self._prompt_tokens = sum(len(request.prompt) for request in requests[:: options.n])
        self._parts = [_Part(tokenizer, options) for _ in requests]
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
                part = self._parts[i]
                if isinstance(event, Token):
                    if part.ended:
                        continue  # came between the match and the cancellation
                    self._completion_tokens += 1
                    text = part.push(event)
                    if part.ended:
                        self._job.cancel(i)
                        yield Chunk(i, text, "stop", part.take(), matched=True)
                    elif text:
                        yield Chunk(i, text, None, part.take())
                    continue
                self._timings.append(event.timing)
                if part.ended:
                    continue
                if event.reason == "cancelled":
                    raise NotReady("the server is shutting down", retry_after_s=1)
                text = part.finish()
                reason: Finish = "stop" if part.ended else event.reason
                yield Chunk(i, text, reason, part.take(last=True), part.ended)


class _Part:
    """The text of one generation as it becomes certain, and the tokens that it is made of."""

    def __init__(self, tokenizer: TextTokenizer, options: GenerateOptions) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._finder = StopFinder(options.stop, options.keep_stop)
        self._scored = options.logprobs is not None
        self._tokens: list[tuple[int, Token]] = []  # where in the text each begins; not yet taken
        self._read = 0  # characters that came in
        self._certain = 0  # characters that went out

    @property
    def ended(self) -> bool:
        """A stop string was found."""
        return self._finder.found

    def push(self, token: Token) -> str:
        if self._scored:
            self._tokens.append((self._read, token))
        text = self._detokenizer.push(token.id)
        self._read += len(text)
        return self._told(self._finder.push(text))

    def finish(self) -> str:
        return self._told(self._finder.push(self._detokenizer.finish()) + self._finder.finish())

    def _told(self, text: str) -> str:
        self._certain += len(text)
        return text

    def take(self, last: bool = False) -> tuple[Scored, ...]:
        """The tokens of the text so far; those of a stop string are withheld with it."""
        whole = last and not self.ended
        ready = [(at, token) for at, token in self._tokens if whole or at < self._certain]
        self._tokens = self._tokens[len(ready) :]
        return tuple(self._score(token, at) for at, token in ready)

    def _score(self, token: Token, offset: int) -> Scored:
        top = tuple((i, self._tokenizer.decode([i]), logprob) for i, logprob in token.top)
        text = self._tokenizer.decode([token.id])
        return Scored(token.id, text, token.logprob, top, offset)
