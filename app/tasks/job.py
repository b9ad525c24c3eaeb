"""Sequences handed to the engine, and their events brought to the event loop.

The engine's thread appends events and wakes the loop once for all that lie waiting; with
`tokens=False` only the end of a sequence wakes it. Leaving the job's `with` block for any
reason (answer complete, error, deadline, client gone) cancels whatever still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from app.engine.request import Event, Failed, Finished, Request, Timing, Token
from app.errors import DeadlineExceeded
from app.record import current

ZERO = Timing(0.0, 0.0, 0.0)


class TicketLike(Protocol):
    def cancel(self) -> None: ...


class EngineLike(Protocol):
    """What tasks ask of the engine."""

    def submit(
        self, requests: Sequence[Request], begun: bool = False
    ) -> Sequence[TicketLike]: ...


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time, and the seconds that were granted."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds, seconds)

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no complete answer within timeout_s={self.seconds:g}")


class Job:
    """Submissions of one request: their listeners and deadlines are set here.

    Sequences are numbered through, those given at construction first.
    """

    def __init__(
        self,
        engine: EngineLike,
        requests: Sequence[Request],
        deadline: Deadline,
        *,
        tokens: bool = False,
    ) -> None:
        self._engine = engine
        self._key = object()  # by which the engine knows what belongs together
        self._deadline = deadline
        self._tokens = tokens
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Event]] = deque()
        self._wake = asyncio.Event()
        self._waking = False
        self._open: dict[int, TicketLike] = {}
        self._record = current.get()
        self._submitted: list[float] = []  # when, of each sequence
        self._begun = False
        self.add(requests)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, requests: Sequence[Request]) -> None:
        """Submit more; only the first may be refused because the queue is full."""
        count, now = len(self._submitted), time.monotonic()
        bound = [
            replace(request, listener=self._listener(i), deadline=self._deadline.at, job=self._key)
            for i, request in enumerate(requests, count)
        ]
        if bound:
            self._open.update(enumerate(self._engine.submit(bound, self._begun), count))
            self._submitted += [now] * len(bound)
            if self._record:
                self._record.submitted(sum(len(request.prompt) for request in bound), now)

    def close(self) -> None:
        """Cancel what still runs."""
        for ticket in self._open.values():
            ticket.cancel()
        self._open.clear()

    def cancel(self, i: int) -> None:
        """Stop sequence i; its `Finished` still comes."""
        if ticket := self._open.get(i):
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Token | Finished]]:
        """Events in the order in which they come, until every sequence has ended."""
        while self._open:
            for event in await self.arrived():
                yield event

    async def arrived(self) -> list[tuple[int, Token | Finished]]:
        """Wait for events, if any sequence runs: all that have come by then."""
        found: list[tuple[int, Token | Finished]] = []
        if not self._open:
            return found
        try:
            async with asyncio.timeout(self._deadline.at - time.monotonic()):
                await self._wake.wait()
        except TimeoutError:
            raise self._deadline.exceeded() from None
        self._wake.clear()
        while self._arrived:
            i, event = self._arrived.popleft()
            if isinstance(event, Failed):
                if found:  # first what came before it
                    self._arrived.appendleft((i, event))
                    self._wake.set()
                    break
                self._open.pop(i, None)
                if isinstance(event.error, DeadlineExceeded):
                    raise self._deadline.exceeded()
                raise event.error
            self._note(i, event)
            if isinstance(event, Finished):
                self._open.pop(i, None)
            found.append((i, event))
        return found

    def _note(self, i: int, event: Token | Finished) -> None:
        if (record := self._record) is None:
            return
        if isinstance(event, Token):
            record.completion_tokens += 1
        elif event.timing != ZERO:  # else it was not generated, but kept
            spent = event.timing
            record.ended(self._submitted[i], spent.queue_s, spent.prefill_s, spent.decode_s)

    def _listener(self, i: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:  # in the engine's thread
            self._arrived.append((i, event))
            if self._waking or (isinstance(event, Token) and not self._tokens):
                return
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._woken)

        return listen

    def _woken(self) -> None:
        self._waking = False  # before draining, so that no event goes unseen
        self._wake.set()


def slowest(timings: Sequence[Timing]) -> Timing:
    """Of the sequence that took longest: the request's critical path, so that its parts add up."""
    return max(timings, key=lambda t: t.queue_s + t.prefill_s + t.decode_s, default=ZERO)


def unheard(event: Event) -> None:
    """The listener of a request until its job sets one."""
