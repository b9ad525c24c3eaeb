"""The cache of results: the same events with and without, bounds, and what must not be kept."""

from __future__ import annotations

import asyncio
import random
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from app.bundle import Bundle
from app.engine.engine import Engine
from app.engine.request import Beam, Event, Finished, Hypothesis, Request, Sampling, Timing, Token
from app.errors import QueueFull
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.tasks.job import Deadline, unheard
from app.tasks.results import ResultCache
from app.tasks.translate import TranslateOptions
from tests.fakes import FakeDecoder, RunFailed

BIG = 10**9


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(slots=4)


@pytest.fixture
def engine(decoder: FakeDecoder) -> Iterator[Engine]:
    made = Engine(decoder, Metrics())
    made.start()
    yield made
    made.stop(drain=False)


def lookups(metrics: Metrics) -> tuple[float, float]:
    name = "gpt2mt_cache_lookups_total"
    hit, miss = (
        metrics.registry.get_sample_value(name, {"cache": "translation", "result": result})
        for result in ("hit", "miss")
    )
    return hit or 0.0, miss or 0.0


def ask(cache: ResultCache, requests: Sequence[Request], cancel: bool = False) -> list[list[Event]]:
    told: list[list[Event]] = [[] for _ in requests]
    ends = [threading.Event() for _ in requests]

    def listener(i: int, event: Event) -> None:
        assert not ends[i].is_set()
        told[i].append(event)
        if not isinstance(event, Token):
            ends[i].set()

    bound = [
        replace(one, listener=lambda event, i=i: listener(i, event))
        for i, one in enumerate(requests)
    ]
    tickets = cache.submit(bound)
    assert len(tickets) == len(requests)
    for ticket in tickets if cancel else ():
        ticket.cancel()
    assert all(end.wait(10) for end in ends)
    return [[replace(e, timing=None) if isinstance(e, Finished) else e for e in one]  # type: ignore[arg-type]
            for one in told]  # fmt: skip


def mixed(count: int) -> list[Request]:
    rng = random.Random(2)
    base = Request((5, 6), 20, unheard, frozenset({0}), Sampling(no_repeat_ngram=3))
    changes = [{}, {"beam": Beam(3, best=2)}, {"max_tokens": 9}, {"forced": (4, 5)},
               {"end_ids": frozenset({1})}, {"beam": Beam(3, 0.5, best=2)}]  # fmt: skip
    return [
        replace(base, prompt=(rng.randrange(1, 96), i // 6 + 1), **changes[i % 6])
        for i in range(count)
    ]


def test_the_same_events_with_and_without(engine: Engine, decoder: FakeDecoder) -> None:
    metrics = Metrics()
    cache = ResultCache(engine, "d", 1000, BIG, metrics)
    requests = mixed(60)
    without = ask(ResultCache(engine, "d", 0, BIG, Metrics()), requests)
    first = ask(cache, requests[:40])
    calls = len(decoder.calls)
    assert ask(cache, requests[:40]) == first == without[:40]
    assert len(decoder.calls) == calls, "nothing was run"
    assert ask(cache, requests) == without, "some known, some not, in one job"
    assert lookups(metrics) == (80, 60)


def test_what_draws_random_numbers_passes_through(engine: Engine, decoder: FakeDecoder) -> None:
    cache = ResultCache(engine, "d", 10, BIG, Metrics())
    one = replace(mixed(1)[0], sampling=Sampling(0.9, seed=3))
    assert ask(cache, [one]) == ask(cache, [one])
    assert not cache._answers


def test_cancelled_and_failed_requests_are_not_kept(engine: Engine, decoder: FakeDecoder) -> None:
    open_gate = threading.Event()
    cache = ResultCache(engine, "d", 10, BIG, Metrics())
    decoder.hook = lambda phase, call: open_gate.wait(5) and None
    threading.Timer(0.05, open_gate.set).start()
    one = replace(mixed(1)[0], max_tokens=40, end_ids=frozenset())
    got = ask(cache, [one], cancel=True)[0]
    assert isinstance(got[-1], Finished) and got[-1].reason == "cancelled"
    assert not cache._answers

    def broken(phase: str, call: int) -> None:
        raise RunFailed

    decoder.hook = broken
    assert not isinstance(ask(cache, [one])[0][-1], Finished)
    assert not cache._answers
    decoder.hook = None
    full = ask(cache, [one])[0]
    assert len(full) == 41 and ask(cache, [one])[0] == full


def test_a_refused_job_tells_nobody(engine: Engine) -> None:
    class Full:
        def submit(self, requests: Sequence[Request], begun: bool = False) -> list[object]:
            raise QueueFull("full")

    cache = ResultCache(engine, "d", 10, BIG, Metrics())
    known, other = mixed(2)
    ask(cache, [known])
    cache._engine = Full()  # type: ignore[assignment]
    told: list[Event] = []
    with pytest.raises(QueueFull):
        cache.submit([replace(known, listener=told.append), other])
    assert not told
    cache.submit([replace(known, listener=told.append)])
    assert told


def test_entries_and_bytes_are_bounded(engine: Engine) -> None:
    cache = ResultCache(engine, "d", 5, BIG, Metrics())
    requests = mixed(8)
    for one in requests:
        ask(cache, [one])
        ask(cache, requests[:1])  # asked for again: it stays
    assert len(cache._answers) == 5
    assert cache._bytes == sum(answer.bytes for answer in cache._answers.values())
    assert cache._find(cache._key(requests[0])) and not cache._find(cache._key(requests[1]))
    small = ResultCache(engine, "d", 1000, 5000, Metrics())
    ask(small, requests)
    assert 0 < len(small._answers) < 4 and small._bytes <= 5000
    assert cache._key(requests[0]) != ResultCache(engine, "e", 5, 5, Metrics())._key(requests[0])


def test_the_stated_bytes_are_not_less_than_the_true_ones() -> None:
    class Told:
        def submit(self, requests: Sequence[Request], begun: bool = False) -> list[None]:
            for one in requests:
                ids = tuple(range(1000, 1030))
                values = tuple(-i / 7 for i in range(30))
                for i, value in zip(ids, values, strict=True):
                    one.listener(Token(i + len(ids), value * 2))
                found = Hypothesis(ids, values, -1.0, "stop")
                one.listener(Finished("stop", Timing(0, 0, 0), (found,) if one.beam else ()))
            return [None] * len(requests)

    cache = ResultCache(Told(), "d", 10**6, BIG, Metrics())  # type: ignore[arg-type]
    requests = [Request((i, 7), 30, unheard, frozenset(), beam=Beam(2) if i % 2 else None)
                for i in range(400)]  # fmt: skip
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache.submit(requests)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.5 * cache._bytes < taken <= cache._bytes


def test_translations_are_the_same_and_are_not_run_again(fp32_bundle: Bundle) -> None:
    metrics = Metrics()
    options = ServiceOptions(slots=8, threads=1, translation_cache=100)
    cached = Service.open(fp32_bundle.path, options, metrics)
    plain = Service.open(fp32_bundle.path, ServiceOptions(slots=8, threads=1), Metrics())
    texts = ["The weather is fine. We go.", "Where is it?", "We go."]

    async def run(service: Service, options: TranslateOptions) -> object:
        deadline = Deadline.after(30)
        result = await service.translator.run(texts, "en", "de", deadline, options=options)
        return result.translations, result.usage

    for one in (cached, plain):
        one.engine.start()
    try:
        for search in (TranslateOptions(), TranslateOptions(beam=2, alternatives=2)):
            wanted = asyncio.run(run(plain, search))
            for _ in range(3):
                assert asyncio.run(run(cached, search)) == wanted
    finally:
        for one in (cached, plain):
            one.engine.stop(drain=False)
    assert lookups(metrics)[0] >= 2 * 2 * 4
