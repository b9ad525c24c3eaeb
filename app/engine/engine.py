"""The engine: one thread that runs the scheduler and tells every listener what became of it.

Any thread submits requests and gets tickets to cancel them by; listeners are called on the engine's
thread, in order, with exactly one `Finished` or `Failed` at the end, come what may. Without work
the thread sleeps on a condition. The queue is bounded; a refusal says when to come back. Metrics
are written here and nowhere else in the engine.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from app.engine.request import (
    INTERACTIVE,
    Decoder,
    Event,
    Failed,
    Finished,
    FinishReason,
    Request,
    Token,
)
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence as Running
from app.engine.sequence import StepReport
from app.engine.validate import validate
from app.errors import AppError, DeadlineExceeded, EngineFailed, NotReady, QueueFull
from app.metrics import Metrics

PHASES = ("prefill", "chunk", "decode", "move", "copy")  # of runs that can fail
GRACE_S = 5.0  # for the run in progress when the time to drain is up
_PACE_S = 30.0  # how far back the pace of the queue is measured


@dataclass(frozen=True, slots=True)
class EngineStats:
    queued: int
    active: int
    slots: int


class Ticket:
    """The right to cancel one submitted request."""

    __slots__ = ("_engine", "_running")

    def __init__(self, engine: Engine, running: Running) -> None:
        self._engine = engine
        self._running = running

    def cancel(self) -> None:
        """The listener gets `Finished("cancelled")`, unless it has been told an end already."""
        self._engine._cancel(self._running)


class Engine:
    def __init__(self, decoder: Decoder, metrics: Metrics, *, max_queue: int = 2048) -> None:
        self._decoder = decoder
        self._max_queue = max_queue
        self._scheduler = Scheduler(decoder)
        self._instruments = _Instruments(metrics, decoder, max_queue)
        self._log = logging.getLogger("app.engine")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._wake = threading.Condition()
        # Guarded by `_wake`:
        self._inbox: list[Running] = []
        self._cancels: list[Running] = []
        self._live: set[Running] = set()  # told no end yet
        self._open = False
        self._stop_at = math.inf
        self._jobs = itertools.count()
        self._ends: deque[float] = deque(maxlen=256)  # when the last sequences ended

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._open = True
        self._instruments.begin()
        self._thread.start()

    def stop(self, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Refuse new requests, let the others end (or fail them now, or at the timeout), return."""
        wait = timeout_s if drain else 0.0
        with self._wake:
            self._open = False
            self._stop_at = min(self._stop_at, time.monotonic() + wait)
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait + GRACE_S)

    def stats(self) -> EngineStats:
        with self._wake:
            return EngineStats(self._queued(), self._scheduler.active, self._decoder.slots)

    def check(self, requests: Sequence[Request]) -> None:
        """Raises what is wrong with one of them, as `submit` does."""
        for request in requests:
            validate(request, self._decoder)

    def submit(self, requests: Sequence[Request], begun: bool = False) -> list[Ticket]:
        """All of the requests or none; see `app.errors` for what it raises.

        `begun`: others of the same job were taken before, and these are however many wait.
        """
        self.check(requests)
        with self._wake:
            if self._open and self._queued() >= self._max_queue and not begun:
                raise QueueFull(
                    f"{self._queued()} sequences are waiting; the limit is {self._max_queue}",
                    retry_after_s=self.retry_after(),
                )
            return self.admit(requests, len(requests) > INTERACTIVE)

    def admit(self, requests: Sequence[Request], large: bool) -> list[Ticket]:
        """Take requests that were checked, however many wait; `large`: as batch, all of them."""
        with self._wake:
            if not self._open:
                raise NotReady("The engine does not run or is stopping", retry_after_s=1.0)
            now, job, capacity = time.monotonic(), next(self._jobs), self._decoder.capacity
            running = [
                Running(one, capacity, now, one.job or job, large or one.batch) for one in requests
            ]
            self._inbox += running
            self._live.update(running)
            self._instruments.waiting(self._queued())
            self._wake.notify()
        return [Ticket(self, one) for one in running]

    def _queued(self) -> int:
        return len(self._inbox) + self._scheduler.waiting

    def retry_after(self) -> float:
        """Seconds until the queue is short enough again, at the pace of the last ends."""
        now = time.monotonic()
        recent = [end for end in self._ends if end > now - _PACE_S]
        if not recent:
            return 1.0
        pace = len(recent) / max(now - recent[0], 1.0)
        excess = self._queued() - self._max_queue + 1
        return min(max(excess / pace, 1.0), 600.0)

    def _cancel(self, running: Running) -> None:
        with self._wake:
            if running in self._live:
                self._cancels.append(running)
                self._wake.notify()

    # The engine's thread

    def _run(self) -> None:
        error: AppError = EngineFailed("The engine stopped after an internal error")
        try:
            self._loop()
            error = NotReady("The server is stopping", retry_after_s=1.0)
        except BaseException:
            self._log.exception("the engine's loop died")
        with self._wake:
            self._open = False
            left = list(self._live)
        for running in left:
            self._tell(running, Failed(error))
        self._instruments.ended()

    def _loop(self) -> None:
        """Steps while there is work, sleep while there is none; returns when stopped."""
        scheduler = self._scheduler
        while True:
            with self._wake:
                while not (self._inbox or self._cancels) and scheduler.idle:
                    self._instruments.idle()
                    if not self._open:
                        return
                    self._wake.wait()
                inbox, self._inbox = self._inbox, []
                cancels, self._cancels = self._cancels, []
                for running in inbox:  # under the lock, for `_queued`
                    scheduler.enqueue(running)
                if time.monotonic() >= self._stop_at:
                    return
            for running in cancels:
                scheduler.cancel(running)
            report = scheduler.step()
            for phase, error in report.failures:
                self._log.error("a %s run of the model failed", phase, exc_info=error)
            self._instruments.step(report)
            for running, event in report.events:
                self._tell(running, event)
            self._instruments.load(scheduler)

    def _tell(self, running: Running, event: Event) -> None:
        if not isinstance(event, Token):
            with self._wake:
                self._live.discard(running)
                self._ends.append(time.monotonic())
            self._instruments.end(event)
        try:
            running.request.listener(event)
        except Exception:
            self._log.exception("a listener raised; its sequence is cancelled")
            self._cancel(running)


class _Instruments:
    """The engine's metrics, label look-ups done once."""

    def __init__(self, metrics: Metrics, decoder: Decoder, max_queue: int) -> None:
        self._limits = (decoder.slots, max_queue, decoder.slots * decoder.capacity)
        self._metrics = metrics
        self._failures = {p: metrics.run_failures.labels(p) for p in PHASES}
        reasons = (*get_args(FinishReason), "deadline", "failed")
        self._ends = {reason: metrics.sequences.labels(reason) for reason in reasons}

    def begin(self) -> None:
        metrics = self._metrics
        gauges = (metrics.slots, metrics.queue_limit, metrics.cache_tokens_limit)
        for gauge, limit in zip(gauges, self._limits, strict=True):
            gauge.set(self, limit)

    def step(self, report: StepReport) -> None:
        m = self._metrics
        for value in report.queue_times:
            m.queue_time.observe(value)
        for value in report.first_token_times:
            m.time_to_first_token.observe(value)
        if report.token_intervals:
            m.inter_token_latency.observe(report.token_intervals)
        for tokens in report.prefill_runs:
            m.prefill_tokens.observe(tokens)
            m.prompt_tokens.inc(tokens)
        if report.decode_rows:
            m.batch_size.observe(report.decode_rows)
        for hit in report.prefix_hits:
            m.cache_lookups.labels("prefix", "hit" if hit else "miss").inc()
        if report.preempted:
            m.preemptions.inc(report.preempted)
        if told := sum(isinstance(event, Token) for _, event in report.events):
            m.generated_tokens.inc(told)
        for phase, _ in report.failures:
            self._failures[phase].inc()

    def end(self, event: Finished | Failed) -> None:
        if isinstance(event, Finished):
            reason: str = event.reason
        else:
            reason = "deadline" if isinstance(event.error, DeadlineExceeded) else "failed"
        self._ends[reason].inc()

    def load(self, scheduler: Scheduler) -> None:
        self.waiting(scheduler.waiting)
        self._metrics.active_slots.set(self, scheduler.active)
        self._metrics.cache_tokens.set(self, scheduler.cached)

    def waiting(self, count: int) -> None:
        self._metrics.queue_depth.set(self, count)

    def idle(self) -> None:
        self.waiting(0)
        self._metrics.active_slots.set(self, 0)
        self._metrics.cache_tokens.set(self, 0)

    def ended(self) -> None:
        for gauge in self._metrics.shared:
            gauge.drop(self)
