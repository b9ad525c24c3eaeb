"""Answers kept for those who ask exactly the same again: an engine in front of the engine.

Requests flow through to the engine, unless their answer is known: then the listener is told all of
it at once. What is kept is what the engine told of requests that ended by themselves and that draw
no random numbers, so an answer is the same with and without; a request that was cancelled or failed
leaves nothing. Bounded by entries and by bytes; the one that was not asked for longest goes first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.engine.request import Event, Failed, Finished, Request, Token
from app.metrics import Metrics
from app.tasks.job import ZERO, EngineLike, TicketLike

# Of an answer and its place in the cache, and of a token of an answer: objects of Python, measured.
_ENTRY_BYTES, _TOKEN_BYTES = 1200, 150


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[Token, ...]
    end: Finished

    @property
    def bytes(self) -> int:
        told = len(self.tokens) + sum(len(h.ids) for h in self.end.hypotheses)
        return _ENTRY_BYTES + _TOKEN_BYTES * told


class _Ended:
    """The ticket of a request that was answered at once."""

    def cancel(self) -> None:
        pass


class ResultCache:
    """Implements `EngineLike` over another; `digest` is the bundle's."""

    def __init__(
        self, engine: EngineLike, digest: str, max_entries: int, max_bytes: int, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._digest = digest.encode()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._hits = metrics.cache_lookups.labels("translation", "hit")
        self._misses = metrics.cache_lookups.labels("translation", "miss")
        self._lock = threading.Lock()  # answers are kept by the engine's thread
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._bytes = 0

    def submit(self, requests: Sequence[Request], begun: bool = False) -> list[TicketLike]:
        """All or none, as the engine; the known ones are told before this returns."""
        tickets: list[TicketLike] = [_Ended() for _ in requests]
        known: list[tuple[Request, _Answer]] = []
        unknown: dict[int, Request] = {}  # by its place among the requests
        for i, request in enumerate(requests):
            if request.beam is None and request.sampling.temperature > 0.0:
                unknown[i] = request
                continue
            key = self._key(request)
            if answer := self._find(key):
                known.append((request, answer))
            else:
                unknown[i] = replace(request, listener=self._keeping(key, request))
        if unknown:
            submitted = self._engine.submit(list(unknown.values()), begun)
            for i, ticket in zip(unknown, submitted, strict=True):
                tickets[i] = ticket
        self._hits.inc(len(known))
        self._misses.inc(len(unknown))
        for request, answer in known:
            for token in answer.tokens:
                request.listener(token)
            request.listener(answer.end)
        return tickets

    def _key(self, request: Request) -> bytes:
        """Of the bundle and all that an answer depends on."""
        only = request.candidates
        parts = (request.prompt, request.max_tokens, sorted(request.end_ids), request.sampling,
                 request.forced, request.beam, only and only.ids.tobytes())  # fmt: skip
        return hashlib.blake2b(self._digest + repr(parts).encode(), digest_size=32).digest()

    def _find(self, key: bytes) -> _Answer | None:
        with self._lock:
            answer = self._answers.get(key)
            if answer:
                self._answers.move_to_end(key)
            return answer

    def _keeping(self, key: bytes, request: Request) -> Callable[[Event], None]:
        told: list[Token] = []

        def listen(event: Event) -> None:
            if isinstance(event, Token):
                told.append(event)
            elif not isinstance(event, Failed) and event.reason != "cancelled":
                self._keep(key, _Answer(tuple(told), replace(event, timing=ZERO)))
            request.listener(event)

        return listen

    def _keep(self, key: bytes, answer: _Answer) -> None:
        with self._lock:
            if former := self._answers.pop(key, None):
                self._bytes -= former.bytes
            self._answers[key] = answer
            self._bytes += answer.bytes
            while len(self._answers) > self._max_entries or self._bytes > self._max_bytes:
                self._bytes -= self._answers.popitem(last=False)[1].bytes
