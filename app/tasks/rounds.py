"""The pieces of a request on the engine: first attempts, then what is flagged, then what is lost.

All first attempts are one submission; while they run, what has come out flagged is tried again, in
one submission at a time, and second legs follow as their first ones end. What is decided for a
piece depends on it and on those before it, so it is the same however the work was spread over time.
Work that was begun is not given up because the queue is full meanwhile, so a request's answer does
not depend on the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from app.engine.request import INTERACTIVE, Beam, Finished, Hypothesis, Request, Timing, Token
from app.errors import NotReady
from app.tasks.attempts import Attempt, Attempts, Candidate, scored
from app.tasks.inputs import INLINE_CHARACTERS, TaskLimits
from app.tasks.job import ZERO, Deadline, EngineLike, Job, Usage, slowest
from app.tasks.options import TranslateOptions
from app.tasks.pieces import Piece

_BEST = 4  # size of a beam that tries again
_MOST = 64  # pieces of a request that are: a text that is doubtful throughout is not worth more
Made = tuple[list[Candidate], tuple[Hypothesis, ...]]


@dataclass(eq=False, slots=True)
class _Work:
    """An attempt on the engine: what each of its requests has told, and their ends."""

    attempt: Attempt
    beam: Beam | None
    retry: bool  # not a first attempt
    first: int  # number of its first request in the job
    told: list[list[Token]]
    before: Timing = ZERO  # of the legs that have ended
    ends: dict[int, Finished] = field(default_factory=dict)
    made: Made | None = None

    @property
    def ended(self) -> bool:
        return len(self.ends) == len(self.told)

    @property
    def brought(self) -> list[tuple[list[Token], Finished]]:
        return [(tokens, self.ends[k]) for k, tokens in enumerate(self.told)]

    @property
    def timing(self) -> Timing:
        return _sum(self.before, slowest([end.timing for end in self.ends.values()]))


@dataclass(slots=True)
class _Course:
    """How far a piece has come: its works of now, the best until now, its time on the engine."""

    works: list[_Work]
    found: Candidate | None = None
    before: Candidate | None = None  # what was flagged
    timing: Timing = ZERO


class Rounds:
    """`advance` until all are `made`; `usage`, `timing` and `retried` are then those of all.

    With `hear`, tokens of first attempts are told as they come: piece, token. `progress` is called
    with the first attempts' requests that have ended, and all of them.
    """

    def __init__(
        self,
        engine: EngineLike,
        attempts: Attempts,
        pieces: Sequence[Piece],
        options: TranslateOptions,
        limits: TaskLimits,
        deadline: Deadline,
        retry: bool,
        hear: Callable[[int, Token], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._attempts = attempts
        self._pieces = pieces
        self._options = options
        self._size = min(max(_BEST, options.beam), limits.slots)
        self._retry = retry
        self._hear = hear
        self._progress = progress
        self._owners: list[_Work] = []  # of each request of the job
        self._idle: list[_Work] = []  # that have nothing to ask
        self._requests: list[Request] = []
        self._decided = 0  # pieces of which it is known whether they are tried again
        self._left = _MOST
        self._wanted: list[tuple[int, bool]] = []  # pieces to try: by beam, else part by part
        self._retrying = 0  # works of the submission that tries again
        self.made: list[Candidate | None] = [None] * len(pieces)
        self.first: list[Candidate | None] = [None] * len(pieces)
        self._ends = 0  # of first attempts' requests
        first = [attempts.first(i, piece) for i, piece in enumerate(pieces)]
        works = self._works(first, self._beams(first), False)
        self._courses = [_Course([work]) for work in works]
        self._batch = len(self._requests) > INTERACTIVE
        self._total = sum(
            len(work.told) * len(piece.legs) for work, piece in zip(works, pieces, strict=True)
        )
        self._job = Job(engine, self._requests, deadline, tokens=hear is not None)

    @property
    def usage(self) -> Usage:
        return Usage(
            sum(len(request.prompt) for request in self._requests),
            sum(len(tokens) for work in dict.fromkeys(self._owners) for tokens in work.told),
        )

    @property
    def timing(self) -> Timing:
        return slowest([course.timing for course in self._courses])

    @property
    def retried(self) -> list[tuple[Candidate, Candidate]]:
        """What was flagged, and what was taken."""
        return [(course.before, course.found) for course in self._courses
                if course.before and course.found]  # fmt: skip

    def close(self) -> None:
        self._job.close()

    async def advance(self) -> None:
        """Wait for what comes next from the engine, and take it in."""
        ended, self._idle = self._idle, []
        if not ended:
            ended = self._read(await self._job.arrived())
        ended = self._onward(ended)
        await self._judge(ended)
        for i in dict.fromkeys(work.attempt.piece for work in ended):
            course = self._courses[i]
            if all(work.made for work in course.works):
                self._take(i, course)
        while self._decided < len(self._pieces) and self.first[self._decided]:
            self._decided += 1
            self._decide(self._decided - 1)
        while self._wanted and not self._retrying:
            self._try()

    def _read(self, events: Sequence[tuple[int, Token | Finished]]) -> list[_Work]:
        """The works that have ended."""
        ended = []
        for i, event in events:
            work = self._owners[i]
            if isinstance(event, Token):
                work.told[i - work.first].append(event)
                if self._hear and not work.retry and not self._goes_on(work):
                    self._hear(work.attempt.piece, event)
                continue
            work.ends[i - work.first] = checked(event)
            if not work.retry:
                self._ends += 1
                if self._progress:
                    self._progress(self._ends, self._total)
            if work.ended:
                ended.append(work)
                self._retrying -= work.retry
        return ended

    def _goes_on(self, work: _Work) -> bool:
        return self._attempts.goes_on(work.attempt, self._pieces[work.attempt.piece])

    def _onward(self, ended: Sequence[_Work]) -> list[_Work]:
        """Those of the works that have ended for good; the others' next legs are submitted."""
        final, begin = [], len(self._requests)
        for work in ended:
            if not work.told or not self._goes_on(work):
                final.append(work)
                continue
            i = work.attempt.piece
            attempt = self._attempts.onward(work.attempt, self._pieces[i], work.brought)
            [new] = self._works([attempt], [work.beam], work.retry)
            new.before = work.timing
            self._retrying += work.retry
            works = self._courses[i].works
            works[works.index(work)] = new
        self._submit(self._requests[begin:])
        return final

    async def _judge(self, ended: Sequence[_Work]) -> None:
        def judge() -> None:
            for work in ended:
                told = work.brought
                made = self._attempts.candidates(
                    work.attempt, self._pieces[work.attempt.piece], told
                )
                work.made = made, told[0][1].hypotheses if len(told) == 1 else ()

        if sum(len(tokens) for work in ended for tokens in work.told) * 4 > INLINE_CHARACTERS:
            await asyncio.to_thread(judge)
        else:
            judge()

    def _take(self, i: int, course: _Course) -> None:
        """Of a piece whose works have all ended the best of what they made."""
        made = [work.made for work in course.works if work.made]
        course.timing = _sum(course.timing, slowest([work.timing for work in course.works]))
        parted = course.works[0].attempt.method == "segments"
        course.works = []
        if course.found is None:
            course.found = self.first[i] = scored(*made[0])
            return
        if parted:
            course.found = made[0][0][0]
        else:
            course.found = min(
                [course.found, *(one for candidates, _ in made for one in candidates)],
                key=lambda candidate: candidate.rank,
            )
        self._decide(i)

    def _decide(self, i: int) -> None:
        """Try the piece again or take what there is."""
        course = self._courses[i]
        found = course.found
        assert found is not None
        if self._retry and not course.before and self._doubtful(found):
            course.before = found
            if found.method != "segments" and self._left:
                self._left -= 1
                self._wanted.append((i, True))
                return
        if self._retry and found.lost and found.method != "segments":
            self._wanted.append((i, False))
            return
        loops = self._retry and not self._options.alternatives  # which are told as they are
        self.made[i] = self._attempts.repaired(found, self._pieces[i], loops)

    def _doubtful(self, found: Candidate) -> bool:
        """With alternatives asked for, only what loses protected words is tried again."""
        return bool(found.lost if self._options.alternatives else found.flags)

    def _try(self) -> None:
        """Submit all that is wanted by now."""
        wanted, self._wanted = self._wanted, []
        beam = Beam(self._size, self._options.length_penalty, best=self._size)
        attempts: list[Attempt] = []
        beams: list[Beam | None] = []
        for i, by_beam in wanted:
            found = self._courses[i].found
            assert found is not None
            piece = self._pieces[i]
            new = [self._attempts.parted(i, piece)]
            if by_beam:
                new = self._attempts.again(i, piece, found)
            attempts += new
            beams += [beam if by_beam and self._size > 1 else None] * len(new)
        begin = len(self._requests)
        works = self._works(attempts, beams, True)
        self._submit(self._requests[begin:])
        self._retrying = sum(bool(work.told) for work in works)
        for work in works:
            self._courses[work.attempt.piece].works.append(work)
        for i, _ in wanted:
            if not self._courses[i].works:
                self._decide(i)

    def _works(
        self, attempts: Sequence[Attempt], beams: Sequence[Beam | None], retry: bool
    ) -> list[_Work]:
        works = []
        for attempt, beam in zip(attempts, beams, strict=True):
            new = self._attempts.requests(attempt, self._pieces[attempt.piece], beam)
            work = _Work(attempt, beam, retry, len(self._requests), [[] for _ in new])
            works.append(work)
            if not new:
                self._idle.append(work)
            self._owners += [work] * len(new)
            self._requests += new
        return works

    def _submit(self, requests: Sequence[Request]) -> None:
        if self._batch:
            requests = [replace(request, batch=True) for request in requests]
        self._job.add(requests)

    def _beams(self, attempts: Sequence[Attempt]) -> list[Beam | None]:
        search, only = self._options.search, self._options.branch
        return [search if not only or attempt.piece == 0 else None for attempt in attempts]


def checked(end: Finished) -> Finished:
    if end.reason == "cancelled":  # not by us: the engine is stopping
        raise NotReady("the server is shutting down", retry_after_s=1)
    return end


def _sum(one: Timing, two: Timing) -> Timing:
    return Timing(
        one.queue_s + two.queue_s, one.prefill_s + two.prefill_s, one.decode_s + two.decode_s
    )
