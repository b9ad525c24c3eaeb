"""Several engines as one: the same answers, work shared out, one queue, an end to all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from onnxruntime import InferenceSession

from app.bundle import Bundle
from app.engine import placement, runtime, session
from app.engine.engine import Engine
from app.engine.group import EngineGroup, share
from app.engine.request import Beam, Decoder
from app.engine.session import OnnxDecoder
from app.errors import InvalidField, NotReady, QueueFull, SettingsError
from app.metrics import Metrics
from app.service import Service, ServiceOptions
from app.settings import Settings
from app.tasks.job import Deadline
from app.tasks.options import TranslateOptions
from tests.app.engine.listeners import Gate, Listener, a_request, answers, endless, running
from tests.app.engine.test_engine import mixed, value
from tests.fakes import FakeDecoder


@contextmanager
def group(
    decoders: Sequence[Decoder], metrics: Metrics | None = None, max_queue: int = 2048
) -> Iterator[EngineGroup]:
    metrics = metrics or Metrics()
    one = EngineGroup([Engine(d, metrics, max_queue=max_queue) for d in decoders], max_queue)
    one.start()
    try:
        yield one
    finally:
        one.stop(drain=False)
        assert not one.alive


def test_each_request_goes_where_there_is_least_to_do() -> None:
    assert share([0, 0], [1, 1, 1]) == [[0, 2], [1]]
    assert share([3, 0], [1, 1, 1, 1]) == [[3], [0, 1, 2]]
    assert share([0, 0, 1], [4, 1, 1, 1]) == [[0], [1, 2], [3]]
    assert share([5], [1, 1]) == [[0, 1]]


def test_any_engine_any_company_the_same_answer(int8_bundle: Bundle) -> None:
    def decoder(slots: int) -> Decoder:
        return OnnxDecoder(int8_bundle, slots=slots, spare=2, threads=1)

    rng = random.Random(3)
    alone, together = (mixed(120, decoder(1).vocabulary, 95) for _ in range(2))
    with running(decoder(4)) as engine:
        for one in alone:
            engine.submit([one])
            answers([one])
    metrics = Metrics()
    with group([decoder(8), decoder(8)], metrics) as engines:
        sent = 0
        while sent < len(together):
            tickets = engines.submit(together[sent:][: rng.choice([1, 3, 20])])
            sent += len(tickets)
            if rng.random() < 0.3:
                time.sleep(0.005)
                rng.choice(tickets).cancel()
        found = answers(together)
        stats = engines.stats()
        assert (stats.queued, stats.active, stats.slots) == (0, 0, 16)
        assert value(metrics, "gpt2mt_slots") == 16
    for (tokens, reason), (expected, end) in zip(found, answers(alone), strict=True):
        if reason == "cancelled":
            assert tokens == expected[: len(tokens)]
        else:
            assert (tokens, reason) == (expected, end)


def test_both_work_and_a_large_job_is_large_in_parts() -> None:
    gates = Gate(is_open=False), Gate(is_open=False)
    with group([FakeDecoder(slots=2, hook=gate) for gate in gates]) as engines:
        requests = [endless(Listener()) for _ in range(10)]
        engines.submit(requests)
        assert all(gate.reached.wait(5) for gate in gates)
        live = [engine._live for engine in engines._engines]
        assert [len(of) for of in live] == [5, 5]
        assert all(one.batch for of in live for one in of), "ten are a batch, wherever they are"
        small = [a_request(Listener()) for _ in range(3)]
        engines.submit(small)
        assert sum(not one.batch for of in live for one in of) == 3
        for gate in gates:
            gate.open()
        answers(small)


def test_one_queue_for_all() -> None:
    gates = Gate(is_open=False), Gate(is_open=False)
    with group([FakeDecoder(slots=1, hook=gate) for gate in gates], max_queue=3) as engines:
        engines.submit([endless(Listener()) for _ in range(2)])
        assert all(gate.reached.wait(5) for gate in gates)
        engines.submit([endless(Listener()) for _ in range(3)])
        with pytest.raises(QueueFull, match="3 sequences are waiting; the limit is 3"):
            engines.submit([endless(Listener())])
        engines.submit([endless(Listener())], begun=True)
        assert engines.stats().queued == 4
        for gate in gates:
            gate.open()


def test_all_or_none() -> None:
    good = Listener()
    with group([FakeDecoder(slots=4), FakeDecoder(slots=4)]) as engines:
        bad = replace(a_request(Listener()), beam=Beam(5))
        with pytest.raises(InvalidField, match="beam is 5: this server has 4 slots"):
            engines.submit([a_request(good), bad])
        engines._engines[1].stop(drain=False)
        with pytest.raises(NotReady):
            engines.submit([a_request(good)])
    assert not good.events
    with pytest.raises(NotReady):
        engines.submit([a_request(good)])


def test_what_waits_is_told_at_the_end() -> None:
    requests = [endless(Listener()) for _ in range(9)]
    with group([FakeDecoder(slots=1), FakeDecoder(slots=1)]) as engines:
        engines.submit(requests)
    for one in requests:
        assert isinstance(one.listener, Listener) and one.listener.ended.wait(5)
        assert one.listener.after_end == 0


def test_a_service_of_two_engines_translates_as_one(fp32_bundle: Bundle) -> None:
    once = TranslateOptions(retry=False)
    texts, found = ["Good morning.", "The cat sleeps.", "A red house", "x"] * 5, []
    for engines in (1, 2):
        options = ServiceOptions(slots=9, threads=1, engines=engines, prefix_slots=1)
        service = Service.open(fp32_bundle.path, options, Metrics())
        service.engine.start()
        try:
            result = asyncio.run(
                service.translator.run(texts, "en", "de", Deadline.after(60), options=once)
            )
        finally:
            service.engine.stop(drain=False)
        found.append([one.text for one in result.translations])
        assert service.cache.engines == engines
        assert service.cache.slots == (9 if engines == 1 else 5)
    assert found[0] == found[1]
    assert str(service.cache).startswith("2 x (5 + 1) slots x ")
    assert service.cache.bytes == 2 * 6 * service.cache.tokens * service.cache.token_bytes


def test_a_small_model_on_two_cores_has_two_engines_of_a_thread(
    int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[int | None] = []

    def create(model: str, device: runtime.Device, threads: int | None) -> InferenceSession:
        opened.append(threads)
        return runtime.create_session(model, device, threads)

    monkeypatch.setattr(session, "create_session", create)
    monkeypatch.setattr(placement, "available_threads", lambda: 2)
    monkeypatch.setattr(runtime, "available_threads", lambda: 2)
    with caplog.at_level("INFO"):
        service = Service.open(int8_bundle.path, ServiceOptions(), Metrics())
    assert isinstance(service.engine, EngineGroup) and opened == [1, 1]
    assert service.cache.slots == 16 and service.engine.stats().slots == 32
    assert caplog.text.count("device auto: running on the CPU, because") == 1
    service = Service.open(int8_bundle.path, ServiceOptions(engines=1), Metrics())
    assert isinstance(service.engine, Engine) and opened == [1, 1, None]


def test_engines_are_for_cpus() -> None:
    with pytest.raises(SettingsError, match="engines is 2: more than 1 are for CPUs"):
        Settings.load({"engines": 2, "device": "cuda"}, environ={})
