"""The pieces of a request on the engine: a first round, one for what is flagged, one for the rest.

Every round is one submission of all its attempts, so that they are batched. Work that was begun is
not given up because the queue is full meanwhile: a later round waits for room until the deadline,
so a request's answer does not depend on the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from app.engine.request import Beam, Finished, Hypothesis, Request, Timing, Token
from app.errors import NotReady, QueueFull
from app.tasks.attempts import Attempt, Attempts, Candidate, scored
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits
from app.tasks.job import ZERO, Deadline, EngineLike, Job, Usage, slowest
from app.tasks.options import TranslateOptions
from app.tasks.pieces import Piece

_BEST = 4  # size of a beam that tries again
_MOST = 64  # pieces of a request that are: a text that is doubtful throughout is not worth more
_WAIT_S = 1.0
Made = tuple[list[Candidate], tuple[Hypothesis, ...]]
Told = tuple[list[Token], Finished]


class Rounds:
    """`run` once; `usage`, `timing` and `retried` are then those of all rounds."""

    def __init__(
        self,
        engine: EngineLike,
        attempts: Attempts,
        pieces: Sequence[Piece],
        options: TranslateOptions,
        limits: TaskLimits,
        deadline: Deadline,
    ) -> None:
        self._engine = engine
        self._attempts = attempts
        self._pieces = pieces
        self._options = options
        self._size = min(max(_BEST, options.beam), limits.slots)
        self._deadline = deadline
        self.usage = Usage(0, 0)
        self.timing = ZERO
        self.retried: list[tuple[Candidate, Candidate]] = []  # what was flagged, what was taken

    async def run(
        self, retry: bool, progress: Callable[[int, int], None] | None
    ) -> list[Candidate]:
        """What is taken for each piece, in order."""
        attempts = [self._attempts.first(i, piece) for i, piece in enumerate(self._pieces)]
        first = await self._round(attempts, self._beams(attempts), progress)
        found = [scored(made, end) for made, end in first]
        if retry:
            before = list(found)
            await self._again(found)
            await self._part(found)
            self.retried = [(a, b) for a, b in zip(before, found, strict=True)
                            if self._doubtful(a)]  # fmt: skip
        return [self._attempts.repaired(one, piece)
                for one, piece in zip(found, self._pieces, strict=True)]  # fmt: skip

    def _doubtful(self, found: Candidate) -> bool:
        """With alternatives asked for, only what loses protected words is tried again."""
        return bool(found.lost if self._options.alternatives else found.flags)

    async def _again(self, found: list[Candidate]) -> None:
        doubtful = [i for i, one in enumerate(found) if self._doubtful(one)]
        doubtful.sort(key=lambda i: found[i].rank[:2] == (0, 0))  # those that lose words first
        attempts = [
            attempt
            for i in sorted(doubtful[:_MOST])
            if found[i].method != "segments"
            for attempt in self._attempts.again(i, self._pieces[i], found[i])
        ]
        beam = Beam(self._size, self._options.length_penalty, best=self._size)
        beams = [beam if self._size > 1 else None] * len(attempts)
        made = await self._round(attempts, beams)
        for attempt, (candidates, _) in zip(attempts, made, strict=True):
            found[attempt.piece] = min([found[attempt.piece], *candidates], key=lambda c: c.rank)

    async def _part(self, found: list[Candidate]) -> None:
        attempts = [
            self._attempts.parted(i, self._pieces[i])
            for i, one in enumerate(found)
            if one.lost and one.method != "segments"
        ]
        made = await self._round(attempts, [None] * len(attempts))
        for attempt, (candidates, _) in zip(attempts, made, strict=True):
            found[attempt.piece] = candidates[0]

    def _beams(self, attempts: Sequence[Attempt]) -> list[Beam | None]:
        search, only = self._options.search, self._options.branch
        return [search if not only or attempt.piece == 0 else None for attempt in attempts]

    async def _round(
        self,
        attempts: Sequence[Attempt],
        beams: Sequence[Beam | None],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Made]:
        requests: list[Request] = []
        owners: list[range] = []
        for attempt, beam in zip(attempts, beams, strict=True):
            new = self._attempts.requests(attempt, self._pieces[attempt.piece], beam)
            owners.append(range(len(requests), len(requests) + len(new)))
            requests += new
        told = await self._told(requests, progress)
        self._account(requests, told)

        def judge() -> list[Made]:
            return [self._judged(attempt, [told[i] for i in own])
                    for attempt, own in zip(attempts, owners, strict=True)]  # fmt: skip

        if sum(len(tokens) for tokens, _ in told) * 4 > INLINE_CHARACTERS:
            return await asyncio.to_thread(judge)
        return judge()

    def _judged(self, attempt: Attempt, told: Sequence[Told]) -> Made:
        made = self._attempts.candidates(attempt, self._pieces[attempt.piece], told)
        return made, told[0][1].hypotheses if len(told) == 1 else ()

    async def _told(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None
    ) -> list[Told]:
        tokens: list[list[Token]] = [[] for _ in requests]
        ends: dict[int, Finished] = {}
        with await self._job(requests) as job:
            async for i, event in job.events():
                if isinstance(event, Token):
                    tokens[i].append(event)
                    continue
                ends[i] = checked(event)
                if progress:
                    progress(len(ends), len(requests))
        return [(tokens[i], ends[i]) for i in range(len(requests))]

    async def _job(self, requests: Sequence[Request]) -> Job:
        while True:
            try:
                return Job(self._engine, requests, self._deadline)
            except QueueFull as error:
                if self.usage.prompt_tokens == 0:  # nothing was done yet
                    raise
                wait = min(error.retry_after_s or _WAIT_S, _WAIT_S)
                if self._deadline.left < wait:
                    raise self._deadline.exceeded() from None
                await asyncio.sleep(wait)

    def _account(self, requests: Sequence[Request], told: Sequence[Told]) -> None:
        slow = slowest([end.timing for _, end in told])
        self.timing = Timing(*(getattr(self.timing, name) + getattr(slow, name)
                               for name in ("queue_s", "prefill_s", "decode_s")))  # fmt: skip
        self.usage = replace(
            self.usage,
            prompt_tokens=self.usage.prompt_tokens + sum(len(r.prompt) for r in requests),
            completion_tokens=self.usage.completion_tokens + sum(len(t) for t, _ in told),
        )


def checked(end: Finished) -> Finished:
    if end.reason == "cancelled":  # not by us: the engine is stopping
        raise NotReady("the server is shutting down", retry_after_s=1)
    return end
