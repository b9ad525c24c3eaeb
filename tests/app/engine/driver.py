"""Drives the scheduler over a fake decoder in tests: requests of every kind, and their ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from app.engine.request import (
    Beam,
    Event,
    Failed,
    Finished,
    Hypothesis,
    Request,
    Sampling,
    Token,
)
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence, StepReport
from tests.fakes import END, FakeDecoder, ignore


def request(
    prompt: list[int], max_tokens: int = 20, sampling: Sampling | None = None,
    deadline: float | None = None,
) -> Request:
    return Request(tuple(prompt), max_tokens, ignore, END, sampling or Sampling(), deadline)


def mixed(
    count: int, seed: int = 0, vocabulary: int = 96, longest: int = 39
) -> list[Request]:
    """Requests of every kind; every fifth prompt may have `longest` tokens, the others 39."""
    rng = random.Random(seed)
    options = [
        Sampling(),
        Sampling(0.8, seed=11),
        Sampling(1.2, top_k=10, seed=12),
        Sampling(1.0, top_p=0.8, repetition_penalty=1.2, seed=13),
        Sampling(repetition_penalty=1.4),
        Sampling(0.9, min_p=0.05, presence_penalty=0.5, frequency_penalty=0.2, min_tokens=6),
        Sampling(logit_bias=((0, -3.0), (7, 2.0)), no_repeat_ngram=2, logprobs=3),
        Beam(3, best=3),
        Beam(2, 0.6, early_stopping=False),
        Sampling(0.9, top_k=20, logit_bias=((9, 3.0),)),
        Beam(3, 0.0, early_stopping=False, best=2),
    ]
    requests = []
    for i in range(count):
        most = 39 if i % 5 else longest
        prompt = [rng.randrange(1, vocabulary) for _ in range(rng.randint(1, most))]
        one, option = request(prompt, rng.randrange(1, 40)), options[i % len(options)]
        if rng.random() < 0.2:
            one = replace(one, forced=(5, 6, 7), max_tokens=one.max_tokens + 3)
        if isinstance(option, Beam):
            requests.append(replace(one, beam=option, sampling=Sampling(no_repeat_ngram=3)))
        else:
            requests.append(replace(one, sampling=option))
    return requests


class Driver:
    """Runs a scheduler step by step, checks it after each, and keeps every sequence's events."""

    def __init__(
        self, decoder: FakeDecoder, max_prefill_tokens: int = 128, chunk: int = 16
    ) -> None:
        self.now = 0.0
        self.decoder = decoder
        self.scheduler = Scheduler(
            decoder, max_prefill_tokens=max_prefill_tokens, chunk=chunk, clock=lambda: self.now
        )
        self.events: dict[Sequence, list[Event]] = {}
        self.reports: list[StepReport] = []

    def add(self, one: Request) -> Sequence:
        sequence = self.scheduler.add(one)
        self.events[sequence] = []
        return sequence

    def step(self) -> StepReport:
        self.now += 1.0
        report = self.scheduler.step()
        self.scheduler.check()
        for sequence, event in report.events:
            told = self.events[sequence]
            assert not told or isinstance(told[-1], Token), "an event after the end"
            told.append(event)
        self.reports.append(report)
        return report

    def run(self, limit: int = 5000) -> None:
        while not self.scheduler.idle:
            self.step()
            assert len(self.reports) < limit, "the scheduler does not come to an end"
        assert self.scheduler.active == self.scheduler.waiting == 0
        for told in self.events.values():
            assert isinstance(told[-1], Finished | Failed)

    def answers(self) -> list[tuple[list[Token], str]]:
        return [answer(told) for told in self.events.values()]

    def hypotheses(self) -> list[tuple[Hypothesis, ...]]:
        ends = [told[-1] for told in self.events.values()]
        return [end.hypotheses if isinstance(end, Finished) else () for end in ends]


def answer(told: list[Event]) -> tuple[list[Token], str]:
    """The tokens and the reason of the end, or the code of the failure."""
    tokens = [event for event in told if isinstance(event, Token)]
    end = told[-1]
    assert len(tokens) == len(told) - 1
    if isinstance(end, Finished):
        return tokens, end.reason
    assert isinstance(end, Failed)
    return tokens, end.error.code


def run_all(
    requests: list[Request],
    hook: Callable[[str, int], None] | None = None,
    poison: Callable[[list[int]], bool] | None = None,
    slots: int = 8,
) -> Driver:
    driver = Driver(FakeDecoder(slots=slots, hook=hook, poison=poison))
    for one in requests:
        driver.add(one)
    driver.run()
    return driver


def one_by_one(requests: list[Request]) -> list[tuple[list[Token], str]]:
    return [run_all([one], slots=one.slots).answers()[0] for one in requests]
