"""The engine's thread: order of events, one end each, full queue, drain, death, metrics."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import replace

import pytest

from app.bundle import Bundle
from app.engine.engine import Engine, Ticket
from app.engine.request import Beam, Decoder, Event, Request, Sampling
from app.engine.session import OnnxDecoder
from app.errors import AppError, InvalidField, NotReady, QueueFull, TooLong
from app.metrics import Metrics
from tests.app.engine import driver
from tests.app.engine.listeners import Gate, Listener, a_request, answers, endless, running
from tests.fakes import FakeDecoder, RunFailed

INF = float("inf")


def mixed(count: int, vocabulary: int = 96, longest: int = 39) -> list[Request]:
    """Requests of every kind, each with a listener of its own."""
    requests = driver.mixed(count, 1, vocabulary, longest)
    return [replace(one, listener=Listener()) for one in requests]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    got = metrics.registry.get_sample_value(name, labels)
    assert got is not None, name
    return got


@pytest.mark.parametrize("model", ["fake", "fp32_bundle", "int8_bundle", "int4_bundle"])
def test_any_company_any_arrival_the_same_answer(
    model: str, request: pytest.FixtureRequest
) -> None:
    """Greedy, sampled, searched, with options; some are cancelled on the way. 200 of each model."""
    bundle: Bundle | None = None if model == "fake" else request.getfixturevalue(model)

    def decoder(slots: int) -> Decoder:
        if bundle is None:
            return FakeDecoder(slots=slots)
        return OnnxDecoder(bundle, slots=slots, spare=slots // 5, threads=2)

    longest = 39 if bundle is None else 95  # over a chunk
    vocabulary, rng = decoder(1).vocabulary, random.Random(7)
    alone, together = (mixed(200, vocabulary, longest) for _ in range(2))
    with running(decoder(4)) as engine:
        for one in alone:
            engine.submit([one])
            answers([one])
    metrics = Metrics()
    with running(decoder(16), metrics) as engine:
        tickets: list[Ticket] = []
        while len(tickets) < len(together):
            tickets += engine.submit(together[len(tickets) :][: rng.choice([1, 3, 20])])
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.01)
            if rng.random() < 0.6:
                rng.choice(tickets).cancel()
        pairs = list(zip(answers(together), answers(alone), strict=True))
        assert engine.stats().active == 0
    for (tokens, reason), (expected, end) in pairs:
        # Token equality is ids and log-probabilities, bit by bit.
        if reason == "cancelled":
            assert tokens == expected[: len(tokens)]
        else:
            assert (tokens, reason) == (expected, end)
    for one, other in zip(together, alone, strict=True):
        found, wanted = (each.listener.hypotheses for each in (one, other))  # type: ignore[attr-defined]
        assert found == wanted or one.listener.answer[1] == "cancelled"  # type: ignore[attr-defined]
    assert {reason for (_, reason), _ in pairs} >= {"length", "cancelled"}
    name = "gpt2mt_decode_batch_size"
    assert value(metrics, f"{name}_sum") / value(metrics, f"{name}_count") > 8


def test_listeners_are_called_on_the_engines_thread() -> None:
    listener = Listener()
    with running() as engine:
        engine.submit([a_request(listener)])
        assert listener.answer[1] in ("stop", "length")
    assert listener.threads == {"engine"}


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"prompt": ()}, InvalidField, "prompt"),
        ({"prompt": (1,) * 64}, TooLong, "prompt"),
        ({"prompt": (1, 96)}, InvalidField, "prompt"),
        ({"prompt": (1, -1)}, InvalidField, "prompt"),
        ({"max_tokens": 0}, InvalidField, "max_tokens"),
        ({"sampling": Sampling(temperature=-1.0)}, InvalidField, "temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, InvalidField, "temperature"),
        ({"sampling": Sampling(top_p=1.5)}, InvalidField, "top_p"),
        ({"sampling": Sampling(top_k=-1)}, InvalidField, "top_k"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, InvalidField, "repetition_penalty"),
        ({"sampling": Sampling(min_p=1.5)}, InvalidField, "min_p"),
        ({"sampling": Sampling(presence_penalty=INF)}, InvalidField, "presence_penalty"),
        ({"sampling": Sampling(frequency_penalty=INF)}, InvalidField, "frequency_penalty"),
        ({"sampling": Sampling(logit_bias=((96, 1.0),))}, InvalidField, "logit_bias"),
        ({"sampling": Sampling(logit_bias=((5, INF),))}, InvalidField, "logit_bias"),
        ({"sampling": Sampling(min_tokens=-1)}, InvalidField, "min_tokens"),
        ({"sampling": Sampling(logprobs=-1)}, InvalidField, "logprobs"),
        ({"forced": (96,)}, InvalidField, "prefix"),
        ({"forced": (5,) * 61}, TooLong, "prefix"),
        ({"forced": (5,) * 20}, InvalidField, "max_tokens"),
        ({"beam": Beam(9)}, InvalidField, "beam"),
        ({"beam": Beam(0)}, InvalidField, "beam"),
        ({"beam": Beam(2, best=3)}, InvalidField, "alternatives"),
        ({"beam": Beam(2, INF)}, InvalidField, "length_penalty"),
        ({"beam": Beam(2), "sampling": Sampling(0.5)}, InvalidField, "temperature"),
        ({"beam": Beam(2), "sampling": Sampling(logprobs=1)}, InvalidField, "logprobs"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(
    change: dict[str, object], error: type[AppError], param: str
) -> None:
    good = Listener()
    with running() as engine:
        with pytest.raises(error) as caught:
            engine.submit([a_request(good), replace(a_request(Listener()), **change)])
        assert caught.value.param == param
        assert engine.stats().queued == 0, "all or nothing"
    assert not good.events


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    gate = Gate(is_open=False)
    with running(FakeDecoder(slots=1, hook=gate), max_queue=3) as engine:
        engine.submit([endless(Listener())])
        assert gate.reached.wait(5)
        job = [endless(Listener()) for _ in range(50)]
        engine.submit(job)  # there was room: admitted whole
        assert (engine.stats().queued, engine.stats().active) == (50, 0)
        with pytest.raises(QueueFull) as caught:
            engine.submit([endless(Listener())])
        assert caught.value.retry_after_s == 1.0, "nothing is known about the pace yet"
        engine._ends.extend(time.monotonic() - 10.0 + i for i in range(10))
        with pytest.raises(QueueFull) as caught:
            engine.submit([endless(Listener())])
        assert caught.value.retry_after_s == pytest.approx(48, rel=0.1)  # 48 too many, 1 a second
        engine.submit([endless(Listener())], begun=True)
        assert engine.stats().queued == 51


def test_a_large_job_gives_way_to_a_small_one() -> None:
    metrics, order = Metrics(), list[str]()
    gate = Gate(is_open=False)

    def named(name: str) -> Listener:
        return Listener(lambda event: order.append(name))

    with running(FakeDecoder(slots=2, hook=gate), metrics) as engine:
        job = [endless(named("large")) for _ in range(9)]
        engine.submit(job)
        assert gate.reached.wait(5)
        small = endless(named("small"))
        engine.submit([small])
        gate.open()
        got = answers([*job, small])
    assert {reason for _, reason in got} == {"length"}
    assert len({tuple(tokens) for tokens, _ in got}) == 1, "one prompt, one answer"
    assert order.index("small") < 10, "the second slot was full, and it need not wait for its end"
    assert value(metrics, "gpt2mt_preemptions_total") == 1


@pytest.mark.parametrize("as_one", [True, False])
def test_what_a_job_submits_later_waits_for_its_turn(as_one: bool) -> None:
    order, gate = list[str](), Gate(is_open=False)
    with running(FakeDecoder(slots=1, hook=gate)) as engine:
        requests = [endless(Listener())]
        engine.submit(requests)
        assert gate.reached.wait(5)
        for name in ("a", "a", "a", "b"):  # each is worth more than a turn
            listener = Listener(lambda event, n=name: order.append(n))  # type: ignore[misc]
            one = replace(endless(listener), job=name if as_one else None)
            engine.submit([one])
            requests.append(one)
        gate.open()
        answers(requests)
    assert [n for n, _ in itertools.groupby(order)] == (["a", "b", "a"] if as_one else ["a", "b"])


def test_cancel_is_idempotent_and_safe_from_a_listener() -> None:
    tickets: list[Ticket] = []
    count = 0

    def act(event: Event) -> None:
        nonlocal count
        count += 1
        if count == 3:
            tickets[0].cancel()
            tickets[0].cancel()

    gate = Gate(is_open=False)
    listener, waiting = Listener(act), Listener()
    with running(FakeDecoder(slots=1, hook=gate)) as engine:
        tickets += engine.submit([endless(listener), endless(waiting)])
        tickets[1].cancel()
        gate.open()
        tokens, reason = listener.answer
        assert (len(tokens), reason) == (3, "cancelled")
        assert waiting.answer == ([], "cancelled")
        tickets[0].cancel()
    assert listener.after_end == 0


def test_a_listener_that_raises_harms_only_itself() -> None:
    def act(event: Event) -> None:
        raise ValueError("the listener's own")

    bad, good = Listener(act), Listener()
    with running() as engine:
        engine.submit([endless(bad), endless(good)])
        assert good.answer[1] == "length"
        assert bad.answer[1] == "cancelled"
        assert engine.alive


def test_deadline() -> None:
    late, good = Listener(), Listener()
    with running() as engine:
        engine.submit([endless(late, deadline=time.monotonic() - 1), endless(good)])
        assert late.answer == ([], "deadline_exceeded")
        assert good.answer[1] == "length"


def test_stop_drains() -> None:
    requests = mixed(40)
    with running(FakeDecoder(slots=4)) as engine:
        engine.submit(requests)
        engine.stop(drain=True)
        assert not engine.alive
        assert all(one.listener.ended.is_set() for one in requests)  # type: ignore[attr-defined]
        with pytest.raises(NotReady):
            engine.submit(mixed(1))
    assert {reason for _, reason in answers(requests)} == {"stop", "length"}


@pytest.mark.parametrize("drain", [False, True])
def test_stop_under_load_fails_what_is_left(drain: bool) -> None:
    def slow(phase: str, call: int) -> None:
        time.sleep(0.01)

    requests = [endless(Listener()) for _ in range(30)]
    with running(FakeDecoder(slots=4, hook=slow)) as engine:
        engine.submit(requests)
        time.sleep(0.05)
        began = time.monotonic()
        engine.stop(drain=drain, timeout_s=0.2)
        assert time.monotonic() - began < 2.0
        assert {reason for _, reason in answers(requests)} == {"not_ready"}


def test_refuses_before_start_and_stops_without_start() -> None:
    engine = Engine(FakeDecoder(), Metrics())
    with pytest.raises(NotReady):
        engine.submit(mixed(1))
    engine.stop()
    assert not engine.alive


def test_when_the_loop_dies_everyone_is_told() -> None:
    gate = Gate(is_open=False)
    gate.error = SystemExit()  # no run failure: nothing that the scheduler may catch
    requests = mixed(20)
    with running(FakeDecoder(slots=4, hook=gate)) as engine:
        engine.submit(requests)
        gate.open()
        assert {reason for _, reason in answers(requests)} == {"engine_failed"}
        engine._thread.join(5)
        assert not engine.alive
        with pytest.raises(NotReady):
            engine.submit(mixed(1))
        engine._scheduler = Engine(FakeDecoder(), Metrics())._scheduler  # its state is void


def test_a_failing_run_is_counted_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    def hook(phase: str, call: int) -> None:
        if call == 4:
            raise RunFailed("the driver's secret")

    metrics = Metrics()
    requests = mixed(10)
    with running(FakeDecoder(hook=hook), metrics) as engine:
        engine.submit(requests)
        assert {reason for _, reason in answers(requests)} <= {"stop", "length"}
    failures = sum(
        value(metrics, "gpt2mt_run_failures_total", phase=phase) for phase in ("prefill", "decode")
    )
    assert failures == 1
    assert "the driver's secret" in caplog.text


def test_metrics_add_up() -> None:
    metrics = Metrics()
    requests = mixed(30)
    listener = Listener()
    with running(FakeDecoder(slots=4), metrics) as engine:
        engine.submit(requests)
        cancelled = engine.submit([endless(listener)])[0]
        cancelled.cancel()
        got = [*answers(requests), listener.answer]
        assert engine.stats().slots == value(metrics, "gpt2mt_slots") == 4
    tokens = sum(len(tokens) for tokens, _ in got)
    assert value(metrics, "gpt2mt_generated_tokens_total") == tokens
    for reason in ("stop", "length", "cancelled", "deadline", "failed"):
        expected = sum(end == reason for _, end in got)
        assert value(metrics, "gpt2mt_sequences_total", finish_reason=reason) == expected
    prompts = sum(len(one.prompt) + len(one.forced) for one in requests)
    assert value(metrics, "gpt2mt_prompt_tokens_total") in (prompts, prompts + 1)
    assert value(metrics, "gpt2mt_time_to_first_token_seconds_count") >= 30
    assert value(metrics, "gpt2mt_queue_time_seconds_count") >= 30
    assert value(metrics, "gpt2mt_inter_token_latency_seconds_count") > tokens / 2
    assert value(metrics, "gpt2mt_active_slots") == value(metrics, "gpt2mt_queue_depth") == 0


def test_submissions_and_cancels_from_many_threads() -> None:
    requests = mixed(200)
    errors: list[BaseException] = []

    def client(part: list[Request], seed: int) -> None:
        rng = random.Random(seed)
        try:
            for one in part:
                ticket = engine.submit([one])[0]
                if rng.random() < 0.2:
                    time.sleep(rng.random() * 0.002)
                    ticket.cancel()
        except BaseException as error:
            errors.append(error)

    with running(FakeDecoder(slots=8)) as engine:
        threads = [threading.Thread(target=client, args=(requests[i::8], i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        got = answers(requests)
        assert not errors
        assert engine.stats().queued == 0
        assert {reason for _, reason in got} <= {"stop", "length", "cancelled"}
    assert engine.stats().active == 0
