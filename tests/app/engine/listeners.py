"""What tests of the engine's thread share: listeners, a gate in a decoder, an engine that runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.engine.engine import Engine
from app.engine.request import (
    Decoder,
    Event,
    Finished,
    Hypothesis,
    Request,
    Sampling,
    Token,
)
from app.metrics import Metrics
from tests.app.engine import driver
from tests.fakes import END, FakeDecoder


class Listener:
    """Collects events; remembers what must not happen."""

    def __init__(self, act: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self.threads: set[str] = set()
        self.ended = threading.Event()
        self.after_end = 0
        self._act = act

    def __call__(self, event: Event) -> None:
        self.after_end += self.ended.is_set()
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        if not isinstance(event, Token):
            self.ended.set()
        if self._act is not None:
            self._act(event)

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        end = self.events[-1]
        return end.hypotheses if isinstance(end, Finished) else ()

    @property
    def answer(self) -> tuple[list[Token], str]:
        assert self.ended.wait(60) and self.after_end == 0
        return driver.answer(self.events)


class Gate:
    """A decoder hook that lets runs pass only while it is open; can be told to raise."""

    def __init__(self, is_open: bool = True) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()
        self.error: BaseException | None = None
        if is_open:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    def __call__(self, phase: str, call: int) -> None:
        self.reached.set()
        assert self._open.wait(60)
        if self.error is not None:
            raise self.error


@contextmanager
def running(
    decoder: Decoder | None = None, metrics: Metrics | None = None, max_queue: int = 2048
) -> Iterator[Engine]:
    decoder = decoder or FakeDecoder()
    engine = Engine(decoder, metrics or Metrics(), max_queue=max_queue)
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(hook := getattr(decoder, "hook", None), Gate):
            hook.open()
        engine.stop(drain=False)
        assert not engine.alive
        engine._scheduler.check()


def a_request(
    listener: Listener, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 20,
    sampling: Sampling | None = None, end: frozenset[int] = END, deadline: float | None = None,
) -> Request:
    return Request(prompt, max_tokens, listener, end, sampling or Sampling(), deadline)


def endless(listener: Listener, **more: object) -> Request:
    return a_request(listener, (5,), 60, end=frozenset(), **more)  # type: ignore[arg-type]


def answers(requests: list[Request]) -> list[tuple[list[Token], str]]:
    return [one.listener.answer for one in requests]  # type: ignore[attr-defined]
