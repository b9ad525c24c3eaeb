"""Beginnings of prompts that are kept: the same answers with and without, and no slot lost."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from app.bundle import Bundle
from app.engine.prefixes import PrefixStore
from app.engine.request import Beam, Decoder, Event, Request, Sampling
from app.engine.scheduler import Scheduler
from app.engine.session import OnnxDecoder
from tests.fakes import END, FakeDecoder, RunFailed, ignore


def sharing(count: int, longest: int, vocabulary: int = 96) -> list[Request]:
    """Prompts that begin with the whole or a part of one of three texts."""
    rng = random.Random(6)
    texts = [[rng.randrange(1, vocabulary) for _ in range(longest)] for _ in range(3)]
    requests = []
    for i in range(count):
        own = [rng.randrange(1, vocabulary) for _ in range(rng.randrange(0, 6))]
        prompt = (*rng.choice(texts)[: rng.randrange(4, longest - 5)], *own)
        one = Request(prompt, 8, ignore, END)
        if i % 3 == 1:
            one = replace(one, sampling=Sampling(0.9, seed=i))
        elif i % 7 == 2:
            one = replace(one, beam=Beam(2))
        requests.append(one)
    return requests


def run(decoder: Decoder, requests: list[Request], chunk: int) -> tuple[list[list[Event]], int]:
    """Events of each, without times, and how many prompts began with a copy."""
    scheduler = Scheduler(decoder, chunk=chunk, clock=lambda: 0.0)
    told: dict[object, list[Event]] = {}
    hits, rest = 0, list(requests)
    while rest or not scheduler.idle:
        for one in rest[:1]:
            told[scheduler.add(one)] = []
        rest = rest[1:]
        report = scheduler.step()
        scheduler.check()
        hits += sum(report.prefix_hits)
        for sequence, event in report.events:
            told[sequence].append(event)
    assert scheduler.active == 0
    return list(told.values()), hits


@pytest.mark.parametrize("chunk", [2, 8, 16])
@pytest.mark.parametrize("spare", [1, 3, 40])
def test_answers_are_the_same_with_and_without(chunk: int, spare: int) -> None:
    requests = sharing(80, 50)
    expected, none = run(FakeDecoder(slots=4), requests, chunk)
    got, hits = run(FakeDecoder(slots=4, spare=spare), requests, chunk)
    assert got == expected and none == 0
    assert hits > 5


@pytest.mark.parametrize("model", ["fp32_bundle", "int8_bundle"])
def test_bits_are_the_same_with_and_without(model: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(model)
    decoders = [OnnxDecoder(bundle, slots=4, spare=spare, threads=2) for spare in (0, 3)]
    requests = sharing(40, 100, decoders[0].vocabulary)
    for chunk in (16, 64):
        (expected, _), (got, hits) = (run(decoder, requests, chunk) for decoder in decoders)
        assert got == expected and hits > 5


@pytest.mark.parametrize("phase", ["copy", "chunk", "prefill", "decode", "move"])
def test_a_failure_at_any_call_changes_no_answer(phase: str) -> None:
    requests = sharing(14, 50)
    expected, _ = run(FakeDecoder(slots=4), requests, 8)
    plain = FakeDecoder(slots=4, spare=2)
    run(plain, requests, 8)
    calls = [i for i, (name, _) in enumerate(plain.calls, 1) if name == phase]
    assert calls
    for at in calls[:12]:

        def hook(name: str, call: int, at: int = at) -> None:
            if call == at:
                raise RunFailed

        assert run(FakeDecoder(slots=4, spare=2, hook=hook), requests, 8)[0] == expected


def test_a_store_that_cannot_copy_harms_nobody() -> None:
    def hook(phase: str, call: int) -> None:
        if phase == "copy":
            raise RunFailed

    requests = sharing(30, 50)
    expected, _ = run(FakeDecoder(slots=4), requests, 8)
    assert run(FakeDecoder(slots=4, spare=2, hook=hook), requests, 8) == (expected, 0)


def test_the_longest_is_found_and_the_oldest_goes() -> None:
    decoder = FakeDecoder(slots=2, spare=2)
    store = PrefixStore(decoder, 4)
    first, second, third = (tuple(range(n, n + 12)) for n in (1, 30, 60))
    decoder.prefill(0, [first[:9]])
    assert store.keep(first[:9], 0) == 8 and store.keep(first[:8], 0) == 0
    assert store.copy(first, 1) == 8 and store.copy(first[:8], 1) == 4
    assert store.copy((*first[:4], 9, 9), 1) == 4 and store.copy(second, 1) == 0
    assert store.copy(first[:4], 1) == 0, "one token must be left to read"
    for prompt in (second, third):
        store.copy(first, 1)
        decoder.prefill(0, [prompt])
        store.keep(prompt, 0)
        store.check(2)
    assert store.knows(first) and store.knows(third) and not store.knows(second)
    logits = decoder.decode(np.array([7], np.int64), np.array([12], np.int32))
    assert logits.shape == (1, 96)
