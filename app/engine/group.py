"""Several engines as one: each with a thread, a decoder and slots of its own, work shared out.

On a CPU two engines of one thread each do more than one of two threads, which wait for one another
at every operator, the more so while HTTP wants the cores too. Answers are the same: an engine's do
not depend on its company. A request goes to the engine that has least to do, the first of equals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from app.engine.engine import GRACE_S, Engine, EngineStats, Ticket
from app.engine.request import INTERACTIVE, Request
from app.errors import NotReady, QueueFull


class EngineGroup:
    """What `Engine` offers, by engines of the same bundle; `max_queue` is for all together."""

    def __init__(self, engines: Sequence[Engine], max_queue: int) -> None:
        self._engines = list(engines)
        self._max_queue = max_queue
        self._lock = threading.Lock()  # of `submit`, so that shares are counted once
        self._open = False

    @property
    def alive(self) -> bool:
        return all(engine.alive for engine in self._engines)

    def start(self) -> None:
        for engine in self._engines:
            engine.start()
        self._open = True

    def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Refuse new requests, let the others end (or fail them now, or at the timeout), return."""
        with self._lock:
            self._open = False
        until = time.monotonic() + (timeout_s if drain else 0.0)
        threads = [threading.Thread(target=e.stop, args=(drain, timeout_s)) for e in self._engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()) + GRACE_S)

    def stats(self) -> EngineStats:
        found = [engine.stats() for engine in self._engines]
        return EngineStats(
            sum(s.queued for s in found), sum(s.active for s in found), sum(s.slots for s in found)
        )

    def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
        """All of the requests or none; see `Engine.submit`."""
        self._engines[0].check(requests)
        with self._lock:
            if not (self._open and self.alive):
                raise NotReady("The engine does not run or is stopping", retry_after_s=1.0)
            found = [engine.stats() for engine in self._engines]
            queued = sum(stats.queued for stats in found)
            if queued >= self._max_queue and not begun:
                raise QueueFull(
                    f"{queued} sequences are waiting; the limit is {self._max_queue}",
                    retry_after_s=max(engine.retry_after() for engine in self._engines),
                )
            loads = [stats.queued + stats.active for stats in found]
            return self._admit(requests, share(loads, [request.slots for request in requests]))

    def _admit(self, requests: Sequence[Request], shares: Sequence[list[int]]) -> list[Ticket]:
        large, tickets = len(requests) > INTERACTIVE, dict[int, Ticket]()
        try:
            for engine, places in zip(self._engines, shares, strict=True):
                if places:
                    made = engine.admit([requests[i] for i in places], large)
                    tickets.update(zip(places, made, strict=True))
        except NotReady:  # one has died just now
            for ticket in tickets.values():
                ticket.cancel()
            raise
        return [tickets[i] for i in range(len(requests))]


def share(loads: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The requests of these sizes (slots), by place, for each engine: in turn the one whose load
    is then the least, the first of equals."""
    now, shares = list(loads), [list[int]() for _ in loads]
    for i, size in enumerate(sizes):
        least = now.index(min(now))
        now[least] += size
        shares[least].append(i)
    return shares
